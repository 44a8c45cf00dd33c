#include <stdlib.h>
#include <string.h>

#include "client.h"

static void begin(struct call *call, struct remote *remote, unsigned op, unsigned flags)
{
	uint64_t context = context_current();

	call->remote = remote;
	call->op = op;
	call->flags = flags;
	call->error = client_state();
	call->context = remote && client_gpu_of(context) == remote ? handle_there(context) : 0;
	call->used = call->payload_size = call->answer_max = 0;
	call->size = CALL_INLINE;
	call->body = call->small;
	call->payload = NULL;
	call->waiter = (struct waiter){.to = call->answer, .room = sizeof call->answer};
	call->in = (struct reader){.at = NULL};
}

static void fail(struct call *call, int error)
{
	if (!call->error)
		call->error = error;
}

void call_in_context(struct call *call, unsigned op, unsigned flags)
{
	begin(call, client_gpu_of(context_current()), op, flags);
	if (!call->remote)
		fail(call, CU_INVALID_CONTEXT);
}

void call_on_device(struct call *call, unsigned op, unsigned flags, int device)
{
	begin(call, client_gpu(device), op, flags);
	if (!call->remote)
		fail(call, CU_INVALID_DEVICE);
}

void call_on_handle(struct call *call, unsigned op, unsigned flags, uint64_t handle)
{
	begin(call, client_gpu_of(handle), op, flags);
	if (!call->remote)
		fail(call, CU_INVALID_HANDLE);
}

void call_anywhere(struct call *call, unsigned op, unsigned flags)
{
	struct remote *remote = client_gpu_of(context_current());

	begin(call, remote ? remote : client_gpu(0), op, flags);
	if (!call->remote)
		fail(call, CU_NO_DEVICE);
}

void call_bytes(struct call *call, const void *data, size_t size)
{
	size_t grown = call->size;
	uint8_t *body;

	if (call->error)
		return;
	while (grown - call->used < size)
		grown *= 2;
	if (grown > call->size) {
		body = malloc(grown);
		if (!body) {
			fail(call, CU_OUT_OF_MEMORY);
			return;
		}
		memcpy(body, call->body, call->used);
		if (call->body != call->small)
			free(call->body);
		call->body = body;
		call->size = grown;
	}
	if (size)
		memcpy(call->body + call->used, data, size);
	call->used += size;
}

void call_number(struct call *call, uint64_t number)
{
	uint8_t bytes[8];

	for (unsigned i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(number >> 8 * i);
	call_bytes(call, bytes, sizeof bytes);
}

void call_handle(struct call *call, uint64_t handle, enum handle_type type)
{
	if (type == HANDLE_STREAM && handle <= STREAM_PER_THREAD) {
		call_number(call, handle);
		return;
	}
	if (call->remote && client_gpu_of(handle) != call->remote)
		fail(call, type == HANDLE_CONTEXT ? CU_INVALID_CONTEXT : CU_INVALID_HANDLE);
	call_number(call, handle_there(handle));
}

void call_text(struct call *call, const char *text)
{
	size_t size = strnlen(text, TEXT_MAX) + 1;

	if (size > TEXT_MAX)
		fail(call, CU_INVALID_VALUE);
	call_number(call, size);
	call_bytes(call, text, size);
}

void call_payload(struct call *call, const void *data, size_t size)
{
	call_number(call, size);
	call->payload = data;
	call->payload_size = size;
}

void call_send(struct call *call)
{
	bool waits = !(call->flags & CALL_ASYNC);
	struct request request = {.op = call->op, .context = call->context};
	struct iovec pieces[2];

	if (waits)
		request.flags = REQUEST_ANSWER | (call->flags & CALL_DELIVERS ? REQUEST_DELIVER : 0);
	if (call->error)
		return;
	if (call->used + call->payload_size > BODY_MAX) {
		fail(call, CU_INVALID_VALUE);
		return;
	}
	pieces[0] = (struct iovec){.iov_base = call->body, .iov_len = call->used};
	pieces[1] = (struct iovec){.iov_base = (void *)(uintptr_t)call->payload, .iov_len = call->payload_size};
	request.length = (uint32_t)(call->used + call->payload_size);
	call->waiter.grows = call->answer_max > 0;
	call->waiter.most = call->answer_max;
	if (!remote_send(call->remote, &request, pieces, call->payload_size ? 2 : 1, waits ? &call->waiter : NULL) ||
	    (waits && !remote_wait(call->remote, &call->waiter))) {
		fail(call, CU_DEVICE_UNAVAILABLE);
		return;
	}
	if (!waits)
		return;
	call->in = (struct reader){.at = call->waiter.to, .end = call->waiter.to + call->waiter.answer.length};
	if (call->waiter.answer.result)
		fail(call, call->waiter.answer.result);
	else if (call->waiter.answer.late)
		fail(call, call->waiter.answer.late);
}

void answer_bytes(struct call *call, void *to, size_t size)
{
	const uint8_t *at = call->error ? NULL : read_raw(&call->in, size);

	if (at && to)
		memcpy(to, at, size);
	if (!at)
		fail(call, CU_UNKNOWN);
}

void answer_handle(struct call *call, uint64_t *to)
{
	uint64_t handle = call->error ? 0 : read_number(&call->in);

	if (call->in.bad || handle_there(handle) != handle)
		fail(call, CU_UNKNOWN);
	if (!call->error)
		*to = handle_here(call->remote, handle);
}

void answer_text(struct call *call, char *to, size_t size)
{
	const char *text = call->error ? "" : read_text(&call->in);

	if (call->in.bad)
		fail(call, CU_UNKNOWN);
	if (call->error)
		return;
	strncpy(to, text, size - 1);
	to[size - 1] = 0;
}

int call_end(struct call *call)
{
	if (call->body != call->small)
		free(call->body);
	if (call->waiter.to != call->answer)
		free(call->waiter.to);
	return call->error;
}

int unsupported(const char *name)
{
	struct call call;

	call_anywhere(&call, OP_unsupported, CALL_ASYNC);
	call_text(&call, name);
	call_send(&call);
	call_end(&call);
	return CU_NOT_SUPPORTED;
}
