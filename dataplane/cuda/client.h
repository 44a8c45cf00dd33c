/* The guest's libcuda.so.1: how a call is made into a request. generated/client.c and client_*.c use it.
 *
 * Every function may be called after a failure and does nothing then: a call is a plain list of them, and `call_end`
 * tells how it went.
 */
#pragma once

#include "errors.h"
#include "generated/ops.h"
#include "remote.h"

enum { CALL_INLINE = 512, ANSWER_INLINE = TEXT_MAX + 64 };

enum call_flag { CALL_ASYNC = 1, CALL_DELIVERS = 2 };

struct call {
	struct remote *remote;
	unsigned op, flags;
	uint64_t context; /* as the lender knows it */
	int error;
	size_t used, size;
	uint8_t *body; /* `small`, or allocated */
	const void *payload;
	size_t payload_size; /* it is sent behind the body */
	size_t answer_max;   /* more than ANSWER_INLINE, where the answer may be larger */
	struct waiter waiter;
	struct reader in;
	uint8_t small[CALL_INLINE];
	uint8_t answer[ANSWER_INLINE];
};

/* What a call is for decides which lender it goes to. */
void call_in_context(struct call *call, unsigned op, unsigned flags);
void call_on_device(struct call *call, unsigned op, unsigned flags, int device);
void call_on_handle(struct call *call, unsigned op, unsigned flags, uint64_t handle);
void call_anywhere(struct call *call, unsigned op, unsigned flags);

void call_number(struct call *call, uint64_t number);
void call_handle(struct call *call, uint64_t handle, enum handle_type type);
void call_text(struct call *call, const char *text);
void call_bytes(struct call *call, const void *data, size_t size);

/* An array at the end of the body, sent from where it lies. */
void call_payload(struct call *call, const void *data, size_t size);

/* Send it, and wait for the answer unless it is CALL_ASYNC. */
void call_send(struct call *call);

void answer_handle(struct call *call, uint64_t *to);
void answer_bytes(struct call *call, void *to, size_t size);
void answer_text(struct call *call, char *to, size_t size);
int call_end(struct call *call);

/* The process's lenders. CU_SUCCESS, or why nothing can be called. */
int client_state(void);
int client_init(void);
unsigned client_gpus(void);

/* NULL where there is no such device. */
struct remote *client_gpu(int device);

/* The lender that a handle belongs to, or NULL. */
struct remote *client_gpu_of(uint64_t handle);

/* The calling thread's contexts. */
uint64_t context_current(void);

static inline uint64_t handle_there(uint64_t handle)
{
	return handle & ((1ULL << HANDLE_GPU_SHIFT) - 1);
}

static inline uint64_t handle_here(const struct remote *remote, uint64_t handle)
{
	return handle ? handle | (uint64_t)(remote->gpu + 1) << HANDLE_GPU_SHIFT : 0;
}

/* What calls for a thread's own default stream mean by the default stream. */
static inline uint64_t stream_of_thread(uint64_t stream)
{
	return stream ? stream : STREAM_PER_THREAD;
}

/* A value of the device that does not change. */
int device_attribute(struct remote *remote, int attribute, int *value);

/* Forget device memory that ended with a context. */
void memory_forget(struct remote *remote, uint64_t under);

/* Remember a range of device memory, here: of a module's variable; `under`: what it ends with. */
void memory_remember(struct remote *remote, uint64_t base, uint64_t size, uint64_t under, bool allocated);

/* Count a call that is not supported. */
int unsupported(const char *name);
