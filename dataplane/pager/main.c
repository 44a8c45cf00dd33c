/* vmcoal-pager: the page engine of one VM (docs/internals/pager-protocol.md). */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "keep.h"

struct options {
	const char *holder;
	uint64_t listen_fd, cache, lanes, deadline_ms;
};

static const char usage[] =
	"usage: vmcoal-pager --holder PATH --listen-fd N --cache BYTES [--lanes N] [--deadline-ms N]\n"
	"\n"
	"Page the borrowed memory of one VM: fetch what it touches from lenders, keep the rest sealed with them.\n"
	"\n"
	"  --holder PATH     socket of the VM's holder, which keeps what the next pager needs if this one dies\n"
	"  --listen-fd N     listening Unix seqpacket socket for orders\n"
	"  --cache BYTES     how much borrowed memory may be on this host\n"
	"  --lanes N         threads, each with connections of its own (2)\n"
	"  --deadline-ms N   a store that does not answer for so long is given up until it is back (3000)\n";

static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	return !errno && end != text && !*end && *text != '-' && *value >= min && *value <= max;
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {
		{"holder", required_argument, NULL, 'h'}, {"listen-fd", required_argument, NULL, 'f'},
		{"cache", required_argument, NULL, 'c'},  {"lanes", required_argument, NULL, 'l'},
		{"deadline-ms", required_argument, NULL, 'd'}, {"help", no_argument, NULL, '?'},
		{NULL, 0, NULL, 0},
	};
	bool ok = true;

	for (int option; ok && (option = getopt_long(argc, argv, "", known, NULL)) != -1;)
		switch (option) {
		case 'h':
			options->holder = optarg;
			break;
		case 'f':
			ok = parse_number(optarg, 3, 1 << 20, &options->listen_fd);
			break;
		case 'c':
			ok = parse_number(optarg, 64 * PAGE_SIZE, 1ULL << 39, &options->cache);
			break;
		case 'l':
			ok = parse_number(optarg, 1, LANES_MAX, &options->lanes);
			break;
		case 'd':
			ok = parse_number(optarg, 10, 600000, &options->deadline_ms);
			break;
		default:
			ok = false;
		}
	if (ok && options->holder && options->listen_fd && options->cache && optind == argc)
		return true;
	fputs(usage, stderr);
	return false;
}

/* Nothing has to be put in order: what must outlive this process is with the holder at every moment. */
static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct options options = {.lanes = 2, .deadline_ms = 3000};
	static struct engine engine;
	static struct control control;

	if (!parse_options(argc, argv, &options))
		return 2;
	/* A record of TLS is a buffer that comes and goes: what is free at the end of an arena is not given back each time.
	 * Buffers for pages are never mappings of their own, so that they are not unmapped either; lanes give back. */
	mallopt(M_TRIM_THRESHOLD, 2 << 20);
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, end);
	control.engine = &engine;
	control.holder = keep_connect(options.holder);
	if (control.holder < 0) {
		fprintf(stderr, "vmcoal-pager: no holder at %s: %s\n", options.holder, strerror(errno));
		return 1;
	}
	if (!engine_init(&engine, (uint32_t)(options.cache / PAGE_SIZE), (unsigned)options.lanes,
			 (int64_t)options.deadline_ms * 1000) ||
	    !control_open(&control, (int)options.listen_fd)) {
		fprintf(stderr, "vmcoal-pager: cannot start: %s\n", strerror(errno));
		return 1;
	}
	if (!control_take_over(&control)) {
		fprintf(stderr, "vmcoal-pager: the holder does not tell what it keeps\n");
		return 1;
	}
	for (;;)
		loop_turn(&control.loop);
}
