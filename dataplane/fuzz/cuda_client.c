/* What a lender sends to a guest's libcuda.so.1: answers, to requests of which some are waited for. */
#include "input.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "generated/ops.h"
#include "remote.h"

static void must(bool condition)
{
	if (!condition)
		abort();
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static struct remote remote;
	uint8_t small[16], piece[64];
	struct waiter first = {.to = piece, .room = sizeof piece}, second = {.to = small, .room = sizeof small};
	struct request request = {.op = OP_read, .flags = REQUEST_ANSWER};
	struct waiter *later = calloc(1, sizeof *later);
	int ends[2];

	if (!later || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) {
		free(later);
		return 0;
	}
	remote_init(&remote, ends[0], 0);
	must(send(ends[1], data, size, MSG_NOSIGNAL) == (ssize_t)size || !size);
	shutdown(ends[1], SHUT_WR);
	*later = (struct waiter){.own = true};
	second.grows = true;
	second.most = 256;
	if (remote_send(&remote, &request, NULL, 0, &first) && remote_send(&remote, &request, NULL, 0, later) &&
	    remote_send(&remote, &request, NULL, 0, &second)) {
		bool good = remote_wait(&remote, &second);

		must(!good || (second.answer.sequence == 3 && second.answer.length <= second.room));
		good = remote_wait(&remote, &first);
		must(!good || (first.answer.sequence == 1 && first.answer.length <= sizeof piece));
	}
	if (second.to != small)
		free(second.to);
	/* Whoever nobody waits for may be left; the end of the connection takes it away. */
	second = (struct waiter){.to = small, .room = sizeof small};
	if (remote_send(&remote, &request, NULL, 0, &second))
		must(!remote_wait(&remote, &second) || second.answer.sequence == 4);
	must(remote.first == NULL || atomic_load(&remote.lost) == false);
	if (remote.first) {
		second = (struct waiter){.to = small, .room = sizeof small};
		remote_send(&remote, &request, NULL, 0, &second);
		remote_wait(&remote, &second);
	}
	close(ends[0]);
	close(ends[1]);
	return 0;
}
