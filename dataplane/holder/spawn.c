#include "spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cleanup.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

enum step { STEP_SETUP, STEP_CGROUP, STEP_DESCRIPTORS, STEP_FOLDER, STEP_EXEC };

/* What the child writes to the error pipe when it cannot become the program. */
struct failure {
	enum step step;
	int code;
};

static void fail(int pipe, enum step step)
{
	struct failure failure = {step, errno};
	ssize_t ignored = write(pipe, &failure, sizeof failure);

	(void)ignored;
	_exit(127);
}

static int join_cgroup(const char *folder)
{
	AUTO_CLOSE int directory = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	AUTO_CLOSE int procs = directory < 0 ? -1 : openat(directory, "cgroup.procs", O_WRONLY | O_CLOEXEC);

	return procs < 0 || write(procs, "0", 1) != 1 ? -1 : 0;
}

static void reset_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};

	for (int sig = 1; sig <= SIGRTMAX; sig++)
		sigaction(sig, &action, NULL);
}

/* Move `fd` out of the way of every target; the copy closes on exec. */
static int lift(int fd, int floor, int pipe)
{
	int lifted = fcntl(fd, F_DUPFD_CLOEXEC, floor);

	if (lifted < 0)
		fail(pipe, STEP_DESCRIPTORS);
	return lifted;
}

/* stdin is /dev/null, stdout, stderr and the targets are what was given, all else closes on exec. */
static int place_descriptors(const struct launch *launch, int pipe)
{
	const struct request *request = launch->request;
	int lifted[FDS_MAX], in, out, err, floor = TARGET_MIN;

	for (unsigned i = 0; i < request->targetc; i++)
		if (request->targets[i] >= floor)
			floor = request->targets[i] + 1;
	pipe = lift(pipe, floor, pipe);
	out = lift(launch->out, floor, pipe);
	err = lift(launch->err, floor, pipe);
	for (unsigned i = 0; i < request->targetc; i++)
		lifted[i] = lift(launch->fds[i], floor, pipe);
	in = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (in < 0)
		fail(pipe, STEP_DESCRIPTORS);
	/* All of the holder's descriptors are close-on-exec; this holds even if one is ever forgotten. */
	syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
	in = lift(in, floor, pipe);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		fail(pipe, STEP_DESCRIPTORS);
	for (unsigned i = 0; i < request->targetc; i++)
		if (dup2(lifted[i], request->targets[i]) < 0)
			fail(pipe, STEP_DESCRIPTORS);
	return pipe;
}

/* The environment asked for; socket activation (sd_listen_fds(3)) also wants the pid, which only the child knows. */
static char **environment(const struct request *request)
{
	static char *environment[ENV_MAX + 2];
	static char listen_pid[40];
	unsigned count = 0;
	bool activated = false;

	for (unsigned i = 0; i < request->envc; i++) {
		if (!strncmp(request->envp[i], "LISTEN_PID=", 11))
			continue;
		activated |= !strncmp(request->envp[i], "LISTEN_FDS=", 11);
		environment[count++] = request->envp[i];
	}
	if (activated) {
		snprintf(listen_pid, sizeof listen_pid, "LISTEN_PID=%d", getpid());
		environment[count++] = listen_pid;
	}
	environment[count] = NULL;
	return environment;
}

static void __attribute__((noreturn)) become(const struct launch *launch, pid_t holder, int pipe)
{
	const struct request *request = launch->request;
	const struct rlimit no_core = {0, 0};
	sigset_t none;

	/* The holder has one thread, so its death is what this signal tells. If it died before, nothing will. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || setpgid(0, 0) < 0)
		fail(pipe, STEP_SETUP);
	if (getppid() != holder)
		_exit(127);
	/* A core of QEMU would hold the guest's memory, a core of a server the bytes and key of a lease. */
	if (setrlimit(RLIMIT_CORE, &no_core) < 0)
		fail(pipe, STEP_SETUP);
	if (request->cgroup && join_cgroup(request->cgroup) < 0)
		fail(pipe, STEP_CGROUP);
	pipe = place_descriptors(launch, pipe);
	if (setrlimit(RLIMIT_NOFILE, &launch->files) < 0)
		fail(pipe, STEP_SETUP);
	if (request->cwd && chdir(request->cwd) < 0)
		fail(pipe, STEP_FOLDER);
	reset_signals();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	environ = environment(request);
	execvp(request->argv[0], request->argv);
	fail(pipe, STEP_EXEC);
	_exit(127);
}

static void explain(const struct failure *failure, const struct request *request, struct refusal *why)
{
	const char *error = strerror(failure->code);

	switch (failure->step) {
	case STEP_SETUP:
		refuse(why, failure->code, "cannot set up the child: %s", error);
		break;
	case STEP_CGROUP:
		refuse(why, failure->code, "cannot enter cgroup %s: %s", request->cgroup, error);
		break;
	case STEP_DESCRIPTORS:
		refuse(why, failure->code, "cannot place the child's descriptors: %s", error);
		break;
	case STEP_FOLDER:
		refuse(why, failure->code, "cannot enter folder %s: %s", request->cwd, error);
		break;
	case STEP_EXEC:
		refuse(why, failure->code, "cannot execute %s: %s", request->argv[0], error);
		break;
	}
}

/* Read the error pipe to its end, which is the exec (close-on-exec) or the child's death. */
static bool failed(int pipe, struct failure *failure)
{
	ssize_t count;

	do
		count = read(pipe, failure, sizeof *failure);
	while (count < 0 && errno == EINTR);
	return count == (ssize_t)sizeof *failure;
}

pid_t spawn(const struct launch *launch, struct refusal *why)
{
	AUTO_CLOSE int tell = -1;
	AUTO_CLOSE int heard = -1;
	struct failure failure;
	pid_t holder = getpid(), pid;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0) {
		refuse(why, errno, "cannot make a pipe: %s", strerror(errno));
		return -1;
	}
	heard = ends[0];
	tell = ends[1];
	pid = fork();
	if (pid < 0) {
		refuse(why, errno, "cannot fork: %s", strerror(errno));
		return -1;
	}
	if (!pid)
		become(launch, holder, tell);
	close(take_fd(&tell));
	if (failed(heard, &failure)) {
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		explain(&failure, launch->request, why);
		return -1;
	}
	return pid;
}
