#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"

static int open_file(struct log *log)
{
	/* O_NONBLOCK and the check of the type: a FIFO or terminal at that path must not stop the holder. */
	AUTO_CLOSE int fd = open(log->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY |
						    O_NONBLOCK, 0600);
	struct stat info;

	if (fd < 0 || fstat(fd, &info) < 0)
		return -1;
	if (!S_ISREG(info.st_mode)) {
		errno = EINVAL;
		return -1;
	}
	log->size = (uint64_t)info.st_size;
	log->fd = take_fd(&fd);
	return 0;
}

static void log_free(struct log *log)
{
	if (log->fd >= 0)
		close(log->fd);
	free(log->path);
	free(log->older);
	free(log);
}

struct log *log_open(struct logs *logs, const char *path, uint64_t limit)
{
	struct log *log;
	int saved;

	LIST_FOREACH (log, logs, link)
		if (!strcmp(log->path, path)) {
			log->references++;
			log->limit = limit;
			return log;
		}

	log = calloc(1, sizeof *log);
	if (!log)
		return NULL;
	log->fd = -1;
	log->references = 1;
	log->limit = limit;
	log->path = strdup(path);
	if (!log->path || asprintf(&log->older, "%s.1", path) < 0) {
		log->older = NULL;
		errno = ENOMEM;
		goto fail;
	}
	if (open_file(log) < 0)
		goto fail;
	LIST_INSERT_HEAD(logs, log, link);
	return log;
fail:
	saved = errno;
	log_free(log);
	errno = saved;
	return NULL;
}

static void rotate(struct log *log)
{
	if (rename(log->path, log->older) < 0 && errno != ENOENT)
		return;
	if (log->fd >= 0)
		close(log->fd);
	log->fd = -1;
	open_file(log);
}

/* Write all or say how much went. */
static size_t put(struct log *log, const char *data, size_t length)
{
	size_t done = 0;

	while (done < length) {
		ssize_t count = write(log->fd, data + done, length - done);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			break;
		done += (size_t)count;
	}
	log->size += done;
	return done;
}

static void drop(struct log *log, size_t length)
{
	log->dropped += length;
	log->untold += length;
}

/* Once the disk takes data again, say in the log itself that something is missing. */
static bool tell_gap(struct log *log)
{
	uint64_t size = log->size;
	char note[80];
	int length;

	if (!log->untold)
		return true;
	length = snprintf(note, sizeof note, "\n[vmcoal-holder: %" PRIu64 " bytes lost here]\n", log->untold);
	if (put(log, note, (size_t)length) < (size_t)length) {
		if (!ftruncate(log->fd, (off_t)size))
			log->size = size;
		return false;
	}
	log->untold = 0;
	return true;
}

/* How much of the data goes into the present file: whole lines where possible, nothing if the next file holds it. */
static size_t fitting(const struct log *log, const char *data, size_t length)
{
	uint64_t room = log->size < log->limit ? log->limit - log->size : 0;
	const char *newline;

	if (length <= room)
		return length;
	newline = memrchr(data, '\n', room);
	if (newline)
		return (size_t)(newline - data) + 1;
	return log->size ? 0 : room;
}

void log_write(struct log *log, const char *data, size_t length)
{
	while (length) {
		size_t part, done;

		if (log->fd < 0 && open_file(log) < 0)
			return drop(log, length);
		part = fitting(log, data, length);
		if (!part) {
			rotate(log);
			if (log->fd < 0 || log->size)
				return drop(log, length);
			continue;
		}
		if (!tell_gap(log))
			return drop(log, length);
		done = put(log, data, part);
		if (done < part)
			return drop(log, length - done);
		data += part;
		length -= part;
	}
}

void log_close(struct log *log)
{
	if (!log || --log->references)
		return;
	LIST_REMOVE(log, link);
	log_free(log);
}
