/* Bounded log files. The writer never waits for room: what a full disk cannot take is dropped and counted.
 *
 * A file that would grow over its limit is renamed to FILE.1, cut at the end of a line where there is one, and begun
 * anew. Two opens of one path share one log, so that two children may write to one file.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct log {
	unsigned references;
	int fd;
	uint64_t size;
	uint64_t limit;
	uint64_t dropped;
	uint64_t untold;
	char *path;
	char *older;
	LIST_ENTRY(log) link;
};

LIST_HEAD(logs, log);

/* Open or share the log at `path`. NULL with errno; EINVAL where it is not a regular file. */
struct log *log_open(struct logs *logs, const char *path, uint64_t limit);
void log_write(struct log *log, const char *data, size_t length);

/* Drop one reference; does nothing for NULL. */
void log_close(struct log *log);
