/* vmcoal-cuda: the server of a lent GPU's CUDA calls (serve), and what CUDA devices this host has (check). */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "errors.h"
#include "session.h"

static const char usage[] =
	"usage: vmcoal-cuda serve --listen-fd N --device N --memory BYTES [--clients N] [--driver PATH]\n"
	"       vmcoal-cuda check [--driver PATH]\n"
	"\n"
	"serve: take clients from a listening Unix socket; each gets a process of its own.\n"
	"check: print the CUDA devices of this host as JSON.\n"
	"\n"
	"  --listen-fd N   listening socket\n"
	"  --device N      which device\n"
	"  --memory BYTES  how much of its memory all clients together may have\n"
	"  --clients N     how many there may be at once (64)\n"
	"  --driver PATH   the CUDA driver (libcuda.so.1)\n";

struct options {
	const char *driver;
	int listen_fd, device, clients;
	uint64_t memory;
};

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {
		{"driver", required_argument, NULL, 'd'}, {"listen-fd", required_argument, NULL, 'f'},
		{"device", required_argument, NULL, 'n'}, {"memory", required_argument, NULL, 'm'},
		{"clients", required_argument, NULL, 'c'}, {NULL, 0, NULL, 0},
	};

	for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;)
		switch (option) {
		case 'd':
			options->driver = optarg;
			break;
		case 'f':
			options->listen_fd = atoi(optarg);
			break;
		case 'n':
			options->device = atoi(optarg);
			break;
		case 'c':
			options->clients = atoi(optarg);
			break;
		case 'm':
			options->memory = strtoull(optarg, NULL, 10);
			break;
		default:
			return false;
		}
	return optind == argc && options->device >= 0 && options->clients > 0 && options->clients <= CLIENTS_MAX;
}

/* check */

static void print_text(const char *text)
{
	putchar('"');
	for (; *text; text++)
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if (isprint((unsigned char)*text))
			putchar(*text);
	putchar('"');
}

static int check(const struct options *options)
{
	enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };
	struct driver driver;
	const char *why;
	int count = 0, version = 0, device;

	if (!driver_load(&driver, options->driver, &why)) {
		fprintf(stderr, "vmcoal-cuda: %s\n", why);
		return 1;
	}
	if (driver.cuInit(0) || driver.cuDeviceGetCount(&count))
		count = 0;
	driver.cuDriverGetVersion(&version);
	putchar('[');
	for (int i = 0; i < count; i++) {
		char name[256] = "", bus[32] = "";
		int major = 0, minor = 0;
		size_t memory = 0;

		if (driver.cuDeviceGet(&device, i))
			continue;
		driver.cuDeviceGetName(name, sizeof name, device);
		driver.cuDeviceGetPCIBusId(bus, sizeof bus, device);
		driver.cuDeviceTotalMem_v2(&memory, device);
		driver.cuDeviceGetAttribute(&major, CAPABILITY_MAJOR, device);
		driver.cuDeviceGetAttribute(&minor, CAPABILITY_MINOR, device);
		printf("%s{\"index\":%d,\"name\":", i ? "," : "", i);
		print_text(name);
		printf(",\"bus\":");
		print_text(bus);
		printf(",\"memory\":%zu,\"driver\":\"%d.%d\",\"capability\":\"%d.%d\"}", memory, version / 1000,
		       version % 1000 / 10, major, minor);
	}
	puts("]");
	return 0;
}

/* serve */

enum { LAST_REQUESTS_MS = 200 };

static int hung_up_fd;

/* A client that goes ends its process, whatever the driver is doing for it: what it sent before is served and ends it
 * by itself, unless that takes long. */
static void *watch_client(void *nothing)
{
	struct pollfd wait = {.fd = hung_up_fd, .events = POLLRDHUP};

	while (poll(&wait, 1, -1) < 0 && errno == EINTR)
		;
	poll(NULL, 0, LAST_REQUESTS_MS);
	_exit(0);
	return nothing;
}

static void serve_client(const struct options *options, int fd, struct account *account, struct client *client)
{
	struct session session;
	struct driver driver;
	const char *why;
	pthread_t thread;
	sigset_t none;
	int device;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	hung_up_fd = fd;
	if (!driver_load(&driver, options->driver, &why)) {
		fprintf(stderr, "vmcoal-cuda: %s\n", why);
		_exit(1);
	}
	if (pthread_create(&thread, NULL, watch_client, NULL) || driver.cuInit(0) ||
	    driver.cuDeviceGet(&device, options->device)) {
		fputs("vmcoal-cuda: the device does not work\n", stderr);
		_exit(1);
	}
	session_init(&session, &driver, account, client, device);
	session_run(&session, fd);
	_exit(0);
}

static void accept_client(const struct options *options, struct account *account)
{
	int fd = accept4(options->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	struct client *client = NULL;
	pid_t pid;

	if (fd < 0)
		return;
	for (int i = 0; i < options->clients && !client; i++)
		if (!account->clients[i].pid)
			client = &account->clients[i];
	pid = client ? fork() : -1;
	if (!pid) {
		close(options->listen_fd);
		serve_client(options, fd, account, client);
	}
	if (pid > 0)
		client->pid = pid;
	else
		fputs("vmcoal-cuda: refused a client: there are too many\n", stderr);
	close(fd);
}

static void reap(struct account *account)
{
	int status;

	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
		for (int i = 0; i < CLIENTS_MAX; i++)
			if (account->clients[i].pid == pid) {
				if (WIFSIGNALED(status))
					fprintf(stderr, "vmcoal-cuda: a client's server was ended by signal %d\n",
						WTERMSIG(status));
				account_close(account, &account->clients[i]);
			}
}

static int serve(const struct options *options)
{
	struct account *account = account_new(options->memory);
	struct signalfd_siginfo said;
	sigset_t ended;
	int signals;

	sigemptyset(&ended);
	sigaddset(&ended, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ended, NULL);
	signals = signalfd(-1, &ended, SFD_CLOEXEC | SFD_NONBLOCK);
	if (!account || signals < 0) {
		perror("vmcoal-cuda");
		return 1;
	}
	for (;;) {
		struct pollfd wait[2] = {{.fd = options->listen_fd, .events = POLLIN}, {.fd = signals, .events = POLLIN}};

		if (poll(wait, 2, -1) < 0 && errno != EINTR) {
			perror("vmcoal-cuda");
			return 1;
		}
		if (wait[1].revents)
			while (read(signals, &said, sizeof said) > 0)
				;
		reap(account);
		if (wait[0].revents)
			accept_client(options, account);
	}
}

int main(int argc, char **argv)
{
	struct options options = {.driver = "libcuda.so.1", .listen_fd = -1, .clients = CLIENTS_MAX};
	const char *mode = argc > 1 ? argv[1] : "";
	bool ok = argc > 1 && parse_options(argc - 1, argv + 1, &options);

	if (ok && !strcmp(mode, "check"))
		return check(&options);
	if (ok && !strcmp(mode, "serve") && options.listen_fd > 2 && options.memory) {
		signal(SIGPIPE, SIG_IGN);
		return serve(&options);
	}
	fputs(usage, stderr);
	return 2;
}
