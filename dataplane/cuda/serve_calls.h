/* What the served calls share (session.c); the calls themselves are generated/server.c and serve_*.c. */
#pragma once

#include "errors.h"
#include "session.h"

typedef int serve_call(struct session *session, struct reader *in, struct writer *out);

extern serve_call *const served[OPS];

/* Whether the body was read to its end and names only what exists: CU_SUCCESS, a CUresult or MALFORMED. */
int read_end(const struct reader *in);

/* The driver's object that a handle of the client stands for; what is wrong with it is told by `read_end`. */
uint64_t real_handle(struct session *session, struct reader *in, uint64_t handle, enum handle_type type);

/* The lent GPU: to the client it has the number 0. */
int real_device(struct session *session, struct reader *in);

/* See that `count` times `each` bytes from a device pointer on are the client's. */
void touches(struct session *session, struct reader *in, uint64_t at, uint64_t count, uint64_t each);

/* The same for rows of so many elements, `pitch` bytes apart. */
void touches_rows(struct session *session, struct reader *in, uint64_t at, uint64_t pitch, uint64_t count, uint64_t rows,
		  uint64_t each);

bool session_has_room(const struct session *session);

/* Tell the client of an object; `under` is the handle that it ends with. */
int give_handle(struct session *session, struct writer *out, enum handle_type type, uint64_t real, uint64_t under);
void drop_handle(struct session *session, uint64_t handle);

serve_call serve_hello, serve_unsupported, serve_load, serve_load_library, serve_link, serve_name, serve_layout,
	serve_launch, serve_block_size, serve_write, serve_read, serve_copy_rows;
serve_call serve_cuDeviceTotalMem_v2, serve_cuDeviceGetAttribute, serve_cuDevicePrimaryCtxRetain,
	serve_cuDevicePrimaryCtxRelease_v2, serve_cuDevicePrimaryCtxReset_v2, serve_cuCtxCreate_v2,
	serve_cuModuleGetGlobal_v2, serve_cuLibraryGetGlobal, serve_cuMemGetInfo_v2, serve_cuMemAlloc_v2,
	serve_cuMemAllocPitch_v2, serve_cuMemFree_v2, serve_cuMemAllocAsync, serve_cuMemFreeAsync;
