/* The lender's part of the calls about the device, its contexts and the end of things. */
#include <string.h>

#include "serve_calls.h"

/* What a guest cannot use through a connection, whatever the GPU can (CUdevice_attribute). */
static const struct {
	int attribute, value;
} overrides[] = {
	{19, 0},  /* CAN_MAP_HOST_MEMORY */
	{83, 0},  /* MANAGED_MEMORY */
	{88, 0},  /* PAGEABLE_MEMORY_ACCESS */
	{89, 0},  /* CONCURRENT_MANAGED_ACCESS */
	{91, 0},  /* CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM */
	{92, 0},  /* CAN_USE_STREAM_MEM_OPS_V1 */
	{93, 0},  /* CAN_USE_64_BIT_STREAM_MEM_OPS_V1 */
	{94, 0},  /* CAN_USE_STREAM_WAIT_VALUE_NOR_V1 */
	{100, 0}, /* PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES */
	{101, 0}, /* DIRECT_MANAGED_MEM_ACCESS_FROM_HOST */
	{102, 0}, /* VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED */
	{103, 0}, /* HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED */
	{115, 0}, /* MEMORY_POOLS_SUPPORTED */
	{116, 0}, /* GPU_DIRECT_RDMA_SUPPORTED */
	{122, 0}, /* CAN_USE_64_BIT_STREAM_MEM_OPS */
	{123, 0}, /* CAN_USE_STREAM_WAIT_VALUE_NOR */
};

int serve_hello(struct session *session, struct reader *in, struct writer *out)
{
	bool same = !strcmp(read_text(in), CUDA_HELLO);
	int version = 0, result = read_end(in);

	if (result || !same)
		return MALFORMED;
	result = session->driver->cuInit(0);
	if (!result)
		result = session->driver->cuDriverGetVersion(&version);
	if (result)
		return result;
	session->greeted = true;
	write_number(out, (uint64_t)version);
	return CU_SUCCESS;
}

int serve_unsupported(struct session *session, struct reader *in, struct writer *out)
{
	const char *name = read_text(in);
	int result = read_end(in);

	(void)out;
	if (result)
		return result;
	if (!*name || strlen(name) >= UNSUPPORTED_NAME || strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
								       "0123456789_") != strlen(name))
		return MALFORMED;
	if (session->client)
		account_miss(session->client, name);
	return CU_SUCCESS;
}

int serve_cuDeviceTotalMem_v2(struct session *session, struct reader *in, struct writer *out)
{
	int device = real_device(session, in), result = read_end(in);
	size_t bytes = 0;

	if (!result)
		result = session->driver->cuDeviceTotalMem_v2(&bytes, device);
	if (bytes > session->account->limit)
		bytes = session->account->limit;
	if (!result)
		write_bytes(out, &bytes, sizeof bytes);
	return result;
}

int serve_cuDeviceGetAttribute(struct session *session, struct reader *in, struct writer *out)
{
	int attribute = (int)read_number(in), device = real_device(session, in), result = read_end(in), value = 0;

	if (!result)
		result = session->driver->cuDeviceGetAttribute(&value, attribute, device);
	for (size_t i = 0; i < sizeof overrides / sizeof *overrides; i++)
		if (overrides[i].attribute == attribute)
			value = overrides[i].value;
	if (!result)
		write_bytes(out, &value, sizeof value);
	return result;
}

/* A context that the client has already counts once. */
static int give_context(struct session *session, struct writer *out, uint64_t real)
{
	unsigned before = session->table.count - session->table.free;
	int result = give_handle(session, out, HANDLE_CONTEXT, real, 0);

	if (session->table.count - session->table.free == before)
		account_give(session->account, session->client, 0, 1);
	return result;
}

int serve_cuDevicePrimaryCtxRetain(struct session *session, struct reader *in, struct writer *out)
{
	int device = real_device(session, in), result = read_end(in);
	uint64_t real = 0;

	if (result)
		return result;
	if (!session_has_room(session) || !account_take(session->account, session->client, 0, 1))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuDevicePrimaryCtxRetain(&real, device);
	if (!result)
		return give_context(session, out, real);
	account_give(session->account, session->client, 0, 1);
	return result;
}

/* What was in the primary context is gone once nobody holds it. */
static void see_primary(struct session *session, int device, uint64_t real)
{
	unsigned flags = 0;
	int active = 1;

	if (session->driver->cuDevicePrimaryCtxGetState(device, &flags, &active) || active)
		return;
	for (unsigned i = 0; i < session->table.count; i++) {
		const struct entry *entry = &session->table.entries[i];

		if (entry->type == HANDLE_CONTEXT && entry->real == real)
			drop_handle(session, handle_make(HANDLE_CONTEXT, i, entry->use));
	}
}

/* The primary context as the driver knows it, or 0: it is what another retain returns. */
static uint64_t primary_of(struct session *session, int device)
{
	unsigned flags = 0;
	int active = 0;
	uint64_t real = 0;

	if (session->driver->cuDevicePrimaryCtxGetState(device, &flags, &active) || !active ||
	    session->driver->cuDevicePrimaryCtxRetain(&real, device))
		return 0;
	session->driver->cuDevicePrimaryCtxRelease_v2(device);
	return real;
}

static int end_primary(struct session *session, struct reader *in, int (*end)(int))
{
	int device = real_device(session, in), result = read_end(in);
	uint64_t real = result ? 0 : primary_of(session, device);

	if (!result)
		result = end(device);
	if (!result && real)
		see_primary(session, device, real);
	return result;
}

int serve_cuDevicePrimaryCtxRelease_v2(struct session *session, struct reader *in, struct writer *out)
{
	(void)out;
	return end_primary(session, in, session->driver->cuDevicePrimaryCtxRelease_v2);
}

int serve_cuDevicePrimaryCtxReset_v2(struct session *session, struct reader *in, struct writer *out)
{
	(void)out;
	return end_primary(session, in, session->driver->cuDevicePrimaryCtxReset_v2);
}

int serve_cuCtxCreate_v2(struct session *session, struct reader *in, struct writer *out)
{
	unsigned flags = (unsigned)read_number(in);
	int device = real_device(session, in), result = read_end(in);
	uint64_t real = 0;

	if (result)
		return result;
	if (!session_has_room(session) || !account_take(session->account, session->client, 0, 1))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuCtxCreate_v2(&real, flags, device);
	if (result) {
		account_give(session->account, session->client, 0, 1);
		return result;
	}
	/* The driver has pushed it; whose it is to be is said with each request. */
	session->driver->cuCtxSetCurrent(0);
	session->current = 0;
	return give_context(session, out, real);
}
