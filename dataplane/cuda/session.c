#include "session.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "serve_calls.h"

enum { BUFFER = 256 * 1024, LARGE = 64 * 1024, AHEAD = 64 };

void session_init(struct session *session, const struct driver *driver, struct account *account, struct client *client,
		  int device)
{
	*session = (struct session){.driver = driver, .account = account, .client = client, .device = device};
}

void session_free(struct session *session)
{
	table_free(&session->table);
	writer_free(&session->spare);
}

uint32_t session_body_max(unsigned op)
{
	switch (op) {
	case OP_load:
	case OP_load_library:
	case OP_link:
		return BODY_MAX;
	case OP_write:
		return PIECE + SMALL_MAX;
	default:
		return SMALL_MAX;
	}
}

/* What the calls share */

int read_end(const struct reader *in)
{
	if (in->bad || in->at != in->end)
		return MALFORMED;
	return in->wrong;
}

static void wrong(struct reader *in, int result)
{
	if (!in->wrong)
		in->wrong = result;
}

uint64_t real_handle(struct session *session, struct reader *in, uint64_t handle, enum handle_type type)
{
	struct entry *entry;

	if (type == HANDLE_STREAM && handle <= STREAM_PER_THREAD)
		return handle;
	entry = table_find(&session->table, handle);
	/* A program may give a kernel where the API wants a function. */
	if (entry && (entry->type == type || (type == HANDLE_FUNCTION && entry->type == HANDLE_KERNEL)))
		return entry->real;
	wrong(in, type == HANDLE_CONTEXT ? CU_INVALID_CONTEXT : CU_INVALID_HANDLE);
	return 0;
}

int real_device(struct session *session, struct reader *in)
{
	if (read_number(in))
		wrong(in, CU_INVALID_DEVICE);
	return session->device;
}

void touches(struct session *session, struct reader *in, uint64_t at, uint64_t count, uint64_t each)
{
	uint64_t size;

	if (__builtin_mul_overflow(count, each, &size) || (size && !table_range(&session->table, at, size)))
		wrong(in, CU_INVALID_VALUE);
}

void touches_rows(struct session *session, struct reader *in, uint64_t at, uint64_t pitch, uint64_t count, uint64_t rows,
		  uint64_t each)
{
	uint64_t width, size;

	if (!count || !rows)
		return;
	if (__builtin_mul_overflow(count, each, &width) || __builtin_mul_overflow(pitch, rows - 1, &size) ||
	    __builtin_add_overflow(size, width, &size) || !table_range(&session->table, at, size))
		wrong(in, CU_INVALID_VALUE);
}

bool session_has_room(const struct session *session)
{
	return table_has_room(&session->table);
}

int give_handle(struct session *session, struct writer *out, enum handle_type type, uint64_t real, uint64_t under)
{
	uint64_t handle = real ? table_add(&session->table, type, real, under) : 0;

	write_number(out, handle);
	return real && !handle ? CU_OUT_OF_MEMORY : CU_SUCCESS;
}

void drop_handle(struct session *session, uint64_t handle)
{
	bool context = handle_type(handle) == HANDLE_CONTEXT;

	account_give(session->account, session->client, table_drop(&session->table, handle), context ? 1 : 0);
	if (context && session->current == handle) {
		session->current = 0;
		session->driver->cuCtxSetCurrent(0);
	}
}

/* One request */

/* Make the calling thread's context the current one of this thread. */
static int enter(struct session *session, uint64_t context)
{
	struct entry *entry = context ? table_find(&session->table, context) : NULL;
	int result;

	session->context = 0;
	if (context && (!entry || entry->type != HANDLE_CONTEXT))
		return CU_CONTEXT_IS_DESTROYED;
	session->context = context;
	if (session->current == context)
		return CU_SUCCESS;
	result = session->driver->cuCtxSetCurrent(entry ? entry->real : 0);
	if (!result)
		session->current = context;
	return result;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t microseconds(uint64_t ns)
{
	return ns / 1000 < UINT32_MAX ? (uint32_t)(ns / 1000) : UINT32_MAX;
}

/* Tell what it took, for whoever counts calls on their way. */
static void note_time(struct session *session, const struct request *request, uint64_t began, struct answer *answer)
{
	answer->at_ns = now_ns();
	answer->took_us = microseconds(answer->at_ns - began);
	answer->before_us = microseconds(session->unanswered_ns);
	if (request->flags & REQUEST_ANSWER)
		session->unanswered_ns = 0;
	else
		session->unanswered_ns += answer->at_ns - began;
}

bool session_serve(struct session *session, const struct request *request, const uint8_t *body, struct writer *out,
		   struct answer *answer)
{
	uint64_t began = now_ns();
	struct reader in = {.at = body, .end = body + request->length};
	struct entry *entry;
	int result;

	writer_begin(out, ANSWER_SIZE);
	if (request->length > session_body_max(request->op) || session->greeted == (request->op == OP_hello))
		return false;
	result = request->op == OP_hello ? CU_SUCCESS : enter(session, request->context);
	if (!result)
		result = served[request->op](session, &in, out);
	if (result == MALFORMED)
		return false;
	if (result && session->client)
		session->client->failures++;
	*answer = (struct answer){.sequence = request->sequence, .result = result};
	entry = table_find(&session->table, session->context);
	if (entry && !(request->flags & REQUEST_ANSWER) && result && !entry->late)
		entry->late = result;
	if (entry && request->flags & REQUEST_DELIVER) {
		answer->late = entry->late;
		entry->late = 0;
	}
	if (out->failed) {
		writer_begin(out, ANSWER_SIZE);
		answer->result = CU_OUT_OF_MEMORY;
	}
	if (out->failed)
		return false;
	answer->length = (uint32_t)(out->used - ANSWER_SIZE);
	note_time(session, request, began, answer);
	answer_pack(out->data, answer);
	return true;
}

/* The connection */

struct source {
	int fd;
	bool bulk; /* the last request was large: no more than a header is read ahead, so that a body is not copied */
	uint8_t *data;
	size_t start, end;
};

static bool refill(struct source *source)
{
	size_t room = BUFFER - source->end;
	ssize_t count;

	if (source->bulk && room > AHEAD)
		room = AHEAD;
	do
		count = recv(source->fd, source->data + source->end, room, 0);
	while (count < 0 && errno == EINTR);
	if (count > 0)
		source->end += (size_t)count;
	return count > 0;
}

static void tidy(struct source *source)
{
	memmove(source->data, source->data + source->start, source->end - source->start);
	source->end -= source->start;
	source->start = 0;
}

/* `size` bytes in one piece: in the buffer, or in `large`. NULL: the client is gone. */
static const uint8_t *take(struct source *source, size_t size, struct writer *large)
{
	const uint8_t *at;
	uint8_t *room;
	size_t have = source->end - source->start;

	if (size > LARGE && have < size) {
		writer_begin(large, 0);
		room = write_room(large, size);
		if (!room)
			return NULL;
		memcpy(room, source->data + source->start, have);
		source->start = source->end = 0;
		while (have < size) {
			ssize_t count = recv(source->fd, room + have, size - have, 0);

			if (count <= 0 && errno != EINTR)
				return NULL;
			have += count > 0 ? (size_t)count : 0;
		}
		return room;
	}
	if (source->start == source->end)
		source->start = source->end = 0;
	if (source->start + size > BUFFER)
		tidy(source);
	while (source->end - source->start < size)
		if (!refill(source))
			return NULL;
	at = source->data + source->start;
	source->start += size;
	return at;
}

static bool give(int fd, const uint8_t *data, size_t size)
{
	while (size) {
		ssize_t count = send(fd, data, size, MSG_NOSIGNAL);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return false;
		data += count;
		size -= (size_t)count;
	}
	return true;
}

static bool serve_next(struct session *session, struct source *source, struct writer *large, struct writer *out,
		       uint32_t *sequence)
{
	const uint8_t *header = take(source, REQUEST_SIZE, large), *body;
	struct request request;
	struct answer answer;

	if (!header)
		return false;
	if (!cuda_request_parse(header, OPS, &request) || request.length > session_body_max(request.op) ||
	    request.sequence != ++*sequence) {
		fputs("vmcoal-cuda: refused what is no request\n", stderr);
		return false;
	}
	source->bulk = request.length > LARGE;
	body = take(source, request.length, large);
	if (!body)
		return false;
	if (!session_serve(session, &request, body, out, &answer)) {
		fprintf(stderr, "vmcoal-cuda: refused a request: %s\n", op_names[request.op]);
		return false;
	}
	session->client->calls++;
	session->client->bytes_in += REQUEST_SIZE + request.length;
	if (!(request.flags & REQUEST_ANSWER))
		return true;
	session->client->bytes_out += out->used;
	return give(source->fd, out->data, out->used);
}

void session_run(struct session *session, int fd)
{
	struct source source = {.fd = fd, .data = malloc(BUFFER)};
	struct writer large = {.data = NULL}, out = {.data = NULL};
	uint32_t sequence = 0;

	while (source.data && serve_next(session, &source, &large, &out, &sequence))
		;
	writer_free(&large);
	writer_free(&out);
	free(source.data);
}
