/* vmcoal-gpu-relay: carries the calls of a guest's programs to a lent GPU. vmcoal_gpu.py starts it in the guest.
 *
 *   vmcoal-gpu-relay PORT [SERVICE:LISTENER]…
 *
 * PORT is the descriptor of the guest's port, each LISTENER that of a listening Unix socket whose connections are streams
 * of a SERVICE. It prints `ready` once the lender has answered, and ends with the port, or with who started it; then, or
 * if the lender does not answer, it prints why.
 *
 * It runs in guests of any distribution: nothing but the C library is used, and of that nothing new.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "relay.h"

enum { GREETING_MS = 10000 };

/* A number of up to four digits at `*at`, which is moved behind it, or -1. */
static int number(const char **at)
{
	int found = 0, digits = 0;

	for (; **at >= '0' && **at <= '9' && digits < 4; digits++)
		found = 10 * found + *(*at)++ - '0';
	return digits ? found : -1;
}

static bool parse_listener(const char *word, int *listeners)
{
	int service = number(&word), fd;

	if (service < 0 || service >= SERVICES_MAX || *word++ != ':')
		return false;
	fd = number(&word);
	listeners[service] = fd;
	return fd > 2 && !*word;
}

/* Returns 0, or 1 where nobody listens any more. */
static int say(const char *what)
{
	printf("%s\n", what);
	return fflush(stdout) ? 1 : 0;
}

int main(int argc, char **argv)
{
	static struct relay relay;
	const char *word = argc > 1 ? argv[1] : "";
	int listeners[SERVICES_MAX], port = number(&word);

	memset(listeners, -1, sizeof listeners);
	if (port <= 2 || *word)
		return 2;
	for (int i = 2; i < argc; i++)
		if (!parse_listener(argv[i], listeners))
			return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (!relay_open(&relay, port, listeners))
		return say("there is no memory") | 1;
	if (!relay_greet(&relay, GREETING_MS))
		return say(relay.why) | 1;
	if (say("ready"))
		return 1; /* who started it ended before it was tied to that */
	relay_run(&relay);
	relay_close(&relay);
	return say(relay.why);
}
