/* What is asked of the holder: the first byte says how many descriptors came along, the rest is the packet. */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "request.h"

static void must(bool condition)
{
	if (!condition)
		abort();
}

/* Text that the parser hands out lies inside the packet. */
static void inside(const char *text, const char *packet, size_t length)
{
	must(!text || (text > packet && text + strlen(text) < packet + length));
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static struct request request, again;
	struct refusal why;
	/* Exactly as large as the input, so that a sanitizer sees a read beyond it. */
	size_t length = size ? size - 1 : 0;
	char *packet = malloc(length ? length : 1);

	if (!size || !packet) {
		free(packet);
		return 0;
	}
	memcpy(packet, data + 1, length);
	if (!request_parse(packet, length, data[0], &request, &why)) {
		must(why.code > 0 && memchr(why.message, '\0', sizeof why.message));
	} else {
		must(request.argc <= ARGS_MAX && request.envc <= ENV_MAX && request.targetc <= FDS_MAX);
		must(!request.argv[request.argc] && !request.envp[request.envc]);
		for (unsigned i = 0; i < request.argc; i++)
			inside(request.argv[i], packet, length);
		for (unsigned i = 0; i < request.envc; i++)
			inside(request.envp[i], packet, length);
		inside(request.id, packet, length);
		inside(request.name, packet, length);
		inside(request.cwd, packet, length);
		inside(request.stdout_log, packet, length);
		inside(request.stderr_log, packet, length);
		inside(request.cgroup, packet, length);
		/* Restarts lean on it: the same bytes are accepted again, with the same result. */
		must(request_parse(packet, length, data[0], &again, &why));
		must(!memcmp(&request, &again, sizeof request));
	}
	free(packet);
	return 0;
}
