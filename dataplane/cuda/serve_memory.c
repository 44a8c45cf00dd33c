/* The lender's part of the calls about device memory: nothing is touched that is not the client's. */
#include <string.h>

#include "serve_calls.h"

enum { ROWS_MAX = 1 << 20 };

int serve_cuMemGetInfo_v2(struct session *session, struct reader *in, struct writer *out)
{
	size_t available = 0, total = 0, limit = session->account->limit, used;
	int result = read_end(in);

	if (!result)
		result = session->driver->cuMemGetInfo_v2(&available, &total);
	if (result)
		return result;
	used = atomic_load(&session->account->memory);
	if (total > limit)
		total = limit;
	if (available > limit - used)
		available = limit - used;
	write_bytes(out, &available, sizeof available);
	write_bytes(out, &total, sizeof total);
	return CU_SUCCESS;
}

/* Book what the driver allocated; `taken` bytes were taken from the limit for it. */
static int allocated(struct session *session, int result, uint64_t base, uint64_t taken, uint64_t size)
{
	struct range range = {.base = base, .size = size, .under = session->context, .counted = true};

	if (!result && size > taken) {
		if (account_take(session->account, session->client, size - taken, 0))
			taken = size;
		else
			result = CU_OUT_OF_MEMORY;
	}
	if (!result && table_add_range(&session->table, range))
		return CU_SUCCESS;
	if (base)
		session->driver->cuMemFree_v2(base);
	account_give(session->account, session->client, taken, 0);
	return result ? result : CU_OUT_OF_MEMORY;
}

int serve_cuMemAlloc_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t base = 0, size = read_number(in);
	int result = read_end(in);

	if (result)
		return result;
	if (!account_take(session->account, session->client, size, 0))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuMemAlloc_v2(&base, size);
	result = allocated(session, result, base, size, size);
	if (!result)
		write_bytes(out, &base, sizeof base);
	return result;
}

int serve_cuMemAllocPitch_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t base = 0, width = read_number(in), height = read_number(in), size, whole;
	unsigned element = (unsigned)read_number(in);
	size_t pitch = 0;
	int result = read_end(in);

	if (result)
		return result;
	if (__builtin_mul_overflow(width, height, &size) || !account_take(session->account, session->client, size, 0))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuMemAllocPitch_v2(&base, &pitch, width, height, element);
	if (__builtin_mul_overflow(pitch, height, &whole))
		whole = size;
	result = allocated(session, result, base, size, whole);
	if (result)
		return result;
	write_bytes(out, &base, sizeof base);
	write_bytes(out, &pitch, sizeof pitch);
	return CU_SUCCESS;
}

int serve_cuMemAllocAsync(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t base = 0, size = read_number(in);
	uint64_t stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	int result = read_end(in);

	if (result)
		return result;
	if (!account_take(session->account, session->client, size, 0))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuMemAllocAsync(&base, size, stream);
	result = allocated(session, result, base, size, size);
	if (!result)
		write_bytes(out, &base, sizeof base);
	return result;
}

/* The range that begins at `base` and was allocated; the body is read to its end. */
static int find_allocated(struct session *session, struct reader *in, uint64_t base, struct range **range)
{
	int result = read_end(in);

	*range = table_range(&session->table, base, 1);
	if (result)
		return result;
	return *range && (*range)->base == base && (*range)->counted ? CU_SUCCESS : CU_INVALID_VALUE;
}

static void freed(struct session *session, struct range *range)
{
	account_give(session->account, session->client, range->size, 0);
	table_drop_range(&session->table, range);
}

int serve_cuMemFree_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t base = read_number(in);
	struct range *range;
	int result = find_allocated(session, in, base, &range);

	(void)out;
	if (!result)
		result = session->driver->cuMemFree_v2(base);
	if (!result)
		freed(session, range);
	return result;
}

int serve_cuMemFreeAsync(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t base = read_number(in), stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	struct range *range;
	int result = find_allocated(session, in, base, &range);

	(void)out;
	if (!result)
		result = session->driver->cuMemFreeAsync(base, stream);
	if (!result)
		freed(session, range);
	return result;
}

/* Copies */

int serve_write(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t to = read_number(in), stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	bool async = read_number(in) != 0;
	size_t size;
	const uint8_t *data = read_array(in, PIECE, &size);
	int result;

	(void)out;
	touches(session, in, to, size, 1);
	result = read_end(in);
	if (result || !size)
		return result;
	/* From pageable memory both return once the bytes are taken, so that the buffer is free again. */
	return async ? session->driver->cuMemcpyHtoDAsync_v2(to, data, size, stream)
		     : session->driver->cuMemcpyHtoD_v2(to, data, size);
}

int serve_read(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t from = read_number(in), size = read_number(in);
	uint64_t stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	bool async = read_number(in) != 0;
	uint8_t *room;
	int result;

	touches(session, in, from, size, 1);
	result = read_end(in);
	if (result || !size)
		return result;
	if (size > PIECE)
		return MALFORMED;
	room = write_room(out, size);
	if (!room)
		return CU_OUT_OF_MEMORY;
	if (!async)
		result = session->driver->cuMemcpyDtoH_v2(room, from, size);
	else
		result = session->driver->cuMemcpyDtoHAsync_v2(room, from, size, stream);
	if (!result && async)
		result = session->driver->cuStreamSynchronize(stream);
	if (result)
		out->used -= size;
	return result;
}

int serve_copy_rows(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t to = read_number(in), to_pitch = read_number(in), from = read_number(in), from_pitch = read_number(in);
	uint64_t width = read_number(in), rows = read_number(in);
	uint64_t stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	int result;

	(void)out;
	touches_rows(session, in, to, to_pitch, width, rows, 1);
	touches_rows(session, in, from, from_pitch, width, rows, 1);
	result = read_end(in);
	if (!result && rows > ROWS_MAX)
		result = CU_INVALID_VALUE;
	for (uint64_t row = 0; width && !result && row < rows; row++)
		result = session->driver->cuMemcpyDtoDAsync_v2(to + row * to_pitch, from + row * from_pitch, width, stream);
	return result;
}

/* Variables of a module: memory that ends with it. */
static int give_global(struct session *session, struct writer *out, int result, uint64_t base, size_t size, uint64_t under)
{
	if (result)
		return result;
	if (size && !table_range(&session->table, base, size) &&
	    !table_add_range(&session->table, (struct range){.base = base, .size = size, .under = under}))
		return CU_OUT_OF_MEMORY;
	write_bytes(out, &base, sizeof base);
	write_bytes(out, &size, sizeof size);
	return CU_SUCCESS;
}

int serve_cuModuleGetGlobal_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t module_id = read_number(in), module = real_handle(session, in, module_id, HANDLE_MODULE), base = 0;
	const char *name = read_text(in);
	size_t size = 0;
	int result = read_end(in);

	if (!result)
		result = session->driver->cuModuleGetGlobal_v2(&base, &size, module, name);
	return give_global(session, out, result, base, size, module_id);
}

int serve_cuLibraryGetGlobal(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t library_id = read_number(in), library = real_handle(session, in, library_id, HANDLE_LIBRARY), base = 0;
	const char *name = read_text(in);
	size_t size = 0;
	int result = read_end(in);

	if (!result)
		result = session->driver->cuLibraryGetGlobal(&base, &size, library, name);
	return give_global(session, out, result, base, size, library_id);
}
