/* vmcoal-gpu: the way of a lent GPU's calls, on the lender (serve) and on the borrower (pump, check). */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mux.h"
#include "pump.h"
#include "serve.h"

enum { SILENCE = 10 };

static const char usage[] =
	"usage: vmcoal-gpu serve --key FILE --listen-fd N [--command PATH --stream PATH] [--cuda PATH] [--silence SECONDS]\n"
	"       vmcoal-gpu pump --key FILE --address HOST --port N --socket PATH [--meter FILE] [--silence SECONDS]\n"
	"       vmcoal-gpu check --key FILE --address HOST --port N\n"
	"\n"
	"serve: on the lender, connect the streams of one borrower to the Unix sockets of a GPU server.\n"
	"pump:  on the borrower, carry bytes between the lender and the socket of the guest's port.\n"
	"check: see whether the lender answers and accepts the key.\n"
	"\n"
	"  --key FILE        IDENTITY:HEX, the key that both ends have\n"
	"  --listen-fd N     listening TCP socket\n"
	"  --command PATH    the OpenCL server's sockets\n"
	"  --stream PATH\n"
	"  --cuda PATH       the CUDA server's socket\n"
	"  --meter FILE      count calls and bytes there (gpu/meter.h)\n"
	"  --silence SECONDS an end that does not answer for so long is lost (10)\n";

struct options {
	const char *key, *command, *stream, *cuda;
	int listen_fd, silence;
	struct pump pump;
};

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {
		{"key", required_argument, NULL, 'k'},	   {"listen-fd", required_argument, NULL, 'f'},
		{"command", required_argument, NULL, 'c'}, {"stream", required_argument, NULL, 's'},
		{"address", required_argument, NULL, 'a'}, {"port", required_argument, NULL, 'p'},
		{"socket", required_argument, NULL, 'u'},  {"silence", required_argument, NULL, 't'},
		{"meter", required_argument, NULL, 'm'},   {"cuda", required_argument, NULL, 'g'},
		{NULL, 0, NULL, 0},
	};

	for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;)
		switch (option) {
		case 'k':
			options->key = optarg;
			break;
		case 'f':
			options->listen_fd = atoi(optarg);
			break;
		case 'c':
			options->command = optarg;
			break;
		case 's':
			options->stream = optarg;
			break;
		case 'a':
			options->pump.address = optarg;
			break;
		case 'p':
			options->pump.port = optarg;
			break;
		case 'u':
			options->pump.socket = optarg;
			break;
		case 'm':
			options->pump.meter = optarg;
			break;
		case 'g':
			options->cuda = optarg;
			break;
		case 't':
			options->silence = atoi(optarg);
			break;
		default:
			return false;
		}
	return optind == argc && options->key && options->silence > 0 && options->silence <= 3600;
}

int main(int argc, char **argv)
{
	struct options options = {.silence = SILENCE};
	const char *mode = argc > 1 ? argv[1] : "";
	static struct key key;
	bool ok = argc > 1 && parse_options(argc - 1, argv + 1, &options);
	bool serves = !strcmp(mode, "serve"), pumps = !strcmp(mode, "pump"), checks = !strcmp(mode, "check");

	if (serves)
		ok = ok && options.listen_fd > 2 && !options.command == !options.stream && (options.command || options.cuda);
	else
		ok = ok && (pumps || checks) && options.pump.address && options.pump.port && pumps == !!options.pump.socket;
	if (!ok) {
		fputs(usage, stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	if (!key_read(&key, options.key)) {
		fprintf(stderr, "vmcoal-gpu: %s holds no key\n", options.key);
		return 1;
	}
	if (serves) {
		const char *const services[SERVICES] = {options.command, options.stream, options.cuda};

		serve(options.listen_fd, &key, services, options.silence);
		perror("vmcoal-gpu");
		return 1;
	}
	options.pump.silence = options.silence;
	return pump_run(&options.pump, &key);
}
