/* vmcoal-holder: parent of the processes of one VM or one lender (docs/internals/holder-protocol.md). */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cleanup.h"
#include "holder.h"
#include "server.h"

struct options {
	const char *socket, *exits, *name;
	int ready_fd;
	bool detach;
	double idle_seconds;
};

static const char usage[] =
	"usage: vmcoal-holder --socket PATH --exits PATH [--name NAME] [--ready-fd N] [--detach] [--idle-exit SECONDS]\n"
	"\n"
	"Keep the processes of one VM or one lender: start them as told over the socket, log their output, restart them,\n"
	"remember how they ended.\n"
	"\n"
	"  --socket PATH        listen on this Unix seqpacket socket\n"
	"  --exits PATH         append one line for each child that ended\n"
	"  --name NAME          tell clients, and people who read ps, whose holder this is\n"
	"  --ready-fd N         write one byte to descriptor N and close it when listening\n"
	"  --detach             return once listening and go on in the background, in a session of its own\n"
	"  --idle-exit SECONDS  end after so long without live child, kept descriptor and connection (60)\n";

static bool parse_number(const char *text, long max, long *value)
{
	char *end;

	errno = 0;
	*value = strtol(text, &end, 10);
	return !errno && end != text && !*end && *value >= 0 && *value <= max;
}

static bool parse_seconds(const char *text, double *value)
{
	char *end;

	*value = strtod(text, &end);
	return end != text && !*end && *value >= 0 && *value <= 1e6;
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	enum { SOCKET = 1, EXITS, NAME, READY_FD, DETACH, IDLE, HELP };
	static const struct option known[] = {
		{"socket", required_argument, NULL, SOCKET},   {"exits", required_argument, NULL, EXITS},
		{"name", required_argument, NULL, NAME},       {"ready-fd", required_argument, NULL, READY_FD},
		{"detach", no_argument, NULL, DETACH},	       {"idle-exit", required_argument, NULL, IDLE},
		{"help", no_argument, NULL, HELP},	       {NULL, 0, NULL, 0},
	};
	long number;
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case SOCKET:
			options->socket = optarg;
			break;
		case EXITS:
			options->exits = optarg;
			break;
		case NAME:
			options->name = optarg;
			break;
		case READY_FD:
			if (!parse_number(optarg, 1 << 20, &number) || fcntl((int)number, F_GETFD) < 0) {
				fprintf(stderr, "vmcoal-holder: --ready-fd %s is not an open descriptor\n", optarg);
				return false;
			}
			options->ready_fd = (int)number;
			break;
		case DETACH:
			options->detach = true;
			break;
		case IDLE:
			if (!parse_seconds(optarg, &options->idle_seconds)) {
				fprintf(stderr, "vmcoal-holder: --idle-exit %s is not a number of seconds\n", optarg);
				return false;
			}
			break;
		case HELP:
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			return false;
		}
	if (!options->socket || !options->exits || optind < argc || !label_valid(options->name)) {
		fputs(usage, stderr);
		return false;
	}
	return true;
}

/* Only what the starter meant to give stays open; a stray pipe end would keep its reader waiting for our whole life. */
static void close_strays(int keep)
{
	if (keep >= 3) {
		if (keep > 3)
			syscall(SYS_close_range, 3U, (unsigned)keep - 1, 0U);
		syscall(SYS_close_range, (unsigned)keep + 1, ~0U, 0U);
		fcntl(keep, F_SETFD, FD_CLOEXEC);
	} else {
		syscall(SYS_close_range, 3U, ~0U, 0U);
	}
	/* Descriptors 0 to 2 exist, so that nothing else ever gets their numbers. */
	for (int fd; (fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0;)
		if (fd > 2) {
			close(fd);
			return;
		}
}

/* The starter's side of --detach: say 0 once the holder listens, else its exit status. */
static int await_ready(int pipe, pid_t pid)
{
	char byte;
	int status;
	ssize_t count;

	do
		count = read(pipe, &byte, 1);
	while (count < 0 && errno == EINTR);
	if (count == 1)
		return 0;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

/* Go on in a new session. Only the holder itself returns, with the descriptor to report readiness on. */
static int detach(void)
{
	int ends[2];
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		perror("vmcoal-holder: cannot detach");
		exit(1);
	}
	if (pid) {
		close(ends[1]);
		exit(await_ready(ends[0], pid));
	}
	close(ends[0]);
	setsid();
	return ends[1];
}

/* False where nobody is left to hear it. */
static bool tell_ready(int fd)
{
	bool told = fd < 0 || write(fd, "", 1) == 1;

	if (fd >= 0)
		close(fd);
	return told;
}

struct signals {
	struct source source;
	struct holder *holder;
};

static void signals_ready(struct source *source)
{
	struct signals *signals = container_of(source, struct signals, source);
	struct signalfd_siginfo info;

	if (read(source->fd, &info, sizeof info) != sizeof info)
		return;
	if (info.ssi_signo == SIGCHLD)
		children_reap(&signals->holder->children);
	else if (!signals->holder->closing)
		holder_shutdown(signals->holder, CLOSING_GRACE_MS);
}

static bool signals_open(struct signals *signals, struct holder *holder)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_SETMASK, &set, NULL);
	/* An inherited SIG_IGN would lose these; a terminal or reader that goes away is no reason to end a VM. */
	signal(SIGCHLD, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	signals->holder = holder;
	signals->source.ready = signals_ready;
	signals->source.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return signals->source.fd >= 0 && !loop_add(&holder->loop, &signals->source);
}

static int open_everything(struct holder *holder, struct signals *signals, const struct options *options)
{
	struct rlimit files, all;

	getrlimit(RLIMIT_NOFILE, &files);
	all = files;
	all.rlim_cur = all.rlim_max;
	setrlimit(RLIMIT_NOFILE, &all);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	umask(077);

	holder->name = options->name;
	holder->idle_ms = (int64_t)(options->idle_seconds * 1000);
	holder->idle.fire = holder_idle_fired;
	LIST_INIT(&holder->connections);
	store_init(&holder->store);
	if (loop_open(&holder->loop) < 0) {
		perror("vmcoal-holder: epoll");
		return EXIT_FAILURE;
	}
	children_init(&holder->children, &holder->loop, &files);
	holder->children.ended = holder_child_ended;
	holder->exits = log_open(&holder->children.logs, options->exits, EXITS_LIMIT);
	if (!holder->exits) {
		fprintf(stderr, "vmcoal-holder: cannot write %s: %s\n", options->exits, strerror(errno));
		return EXIT_FAILURE;
	}
	if (!signals_open(signals, holder)) {
		perror("vmcoal-holder: signalfd");
		return EXIT_FAILURE;
	}
	return server_open(holder, options->socket);
}

static void close_everything(struct holder *holder, struct signals *signals)
{
	struct child *child;

	server_close(holder);
	while ((child = TAILQ_FIRST(&holder->children.list)))
		child_forget(child);
	store_clear(&holder->store);
	log_close(holder->exits);
	close(holder->spare);
	loop_close_source(&holder->loop, &signals->source);
	loop_close(&holder->loop);
}

int main(int argc, char **argv)
{
	struct options options = {.name = "holder", .ready_fd = -1, .idle_seconds = 60};
	static struct holder holder;
	struct signals signals = {0};
	int detached = -1, failure;

	if (!parse_options(argc, argv, &options))
		return 2;
	close_strays(options.ready_fd);
	if (options.detach)
		detached = detach();
	failure = open_everything(&holder, &signals, &options);
	if (failure)
		return failure;
	if (options.detach) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		if (chdir("/") < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0) {
			perror("vmcoal-holder: cannot detach");
			return 1;
		}
		close(null);
	}
	tell_ready(options.ready_fd);
	/* A starter that was killed meanwhile has nobody who knows of this holder. */
	holder.done = !tell_ready(detached);

	for (holder_review(&holder); !holder.done; holder_review(&holder))
		loop_turn(&holder.loop);
	/* The socket goes first: who finds it must find a holder that serves. */
	unlink(options.socket);
	close_everything(&holder, &signals);
	return 0;
}
