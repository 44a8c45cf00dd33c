/* The guest's part of the calls about memory. What is allocated is remembered here too, so that a wrong pointer is told
 * at once, as CUDA does, though nobody waits for the call itself. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "generated/api.h"

/* Pinned memory of this process (CUDA's: what a copy reads while the program goes on). `under` has the flags. */
static struct table pinned;
static pthread_mutex_t pinned_lock = PTHREAD_MUTEX_INITIALIZER;

/* Device memory */

void memory_remember(struct remote *remote, uint64_t base, uint64_t size, uint64_t under, bool allocated)
{
	struct range range = {.base = base, .size = size, .under = under, .counted = allocated}, *stale;

	pthread_mutex_lock(&remote->known);
	if (allocated) {
		/* What ended with a context that was reset is in the way. */
		for (size_t i = 0; i < remote->memory.ranges_count;) {
			stale = &remote->memory.ranges[i];
			if (stale->base < base + size && base < stale->base + stale->size)
				table_drop_range(&remote->memory, stale);
			else
				i++;
		}
	}
	if (allocated || !table_range(&remote->memory, base, size))
		table_add_range(&remote->memory, range);
	pthread_mutex_unlock(&remote->known);
}

void memory_forget(struct remote *remote, uint64_t under)
{
	pthread_mutex_lock(&remote->known);
	for (size_t i = 0; i < remote->memory.ranges_count;)
		if (remote->memory.ranges[i].under == under)
			table_drop_range(&remote->memory, &remote->memory.ranges[i]);
		else
			i++;
	pthread_mutex_unlock(&remote->known);
}

static bool lookup(struct remote *remote, uint64_t at, uint64_t size, struct range *found)
{
	struct range *range = NULL;

	if (!remote)
		return false;
	pthread_mutex_lock(&remote->known);
	range = table_range(&remote->memory, at, size);
	if (range)
		*found = *range;
	pthread_mutex_unlock(&remote->known);
	return range;
}

/* The lender whose memory a pointer is: that of the current context first, because two lenders may use one address. */
static struct remote *owner(uint64_t at, uint64_t size, struct range *found)
{
	struct remote *remote = client_gpu_of(context_current());

	if (lookup(remote, at, size, found))
		return remote;
	for (unsigned i = 0; i < client_gpus(); i++)
		if (client_gpu((int)i) != remote && lookup(client_gpu((int)i), at, size, found))
			return client_gpu((int)i);
	return NULL;
}

int cuMemAlloc_v2(uint64_t *dptr, size_t bytesize)
{
	uint64_t context = context_current();
	struct call call;

	if (!dptr || !bytesize)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuMemAlloc_v2, 0);
	call_number(&call, bytesize);
	call_send(&call);
	answer_bytes(&call, dptr, sizeof *dptr);
	if (!call.error)
		memory_remember(call.remote, *dptr, bytesize, context, true);
	return call_end(&call);
}

int cuMemAllocPitch_v2(uint64_t *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned ElementSizeBytes)
{
	uint64_t context = context_current();
	struct call call;

	if (!dptr || !pPitch || !WidthInBytes || !Height)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuMemAllocPitch_v2, 0);
	call_number(&call, WidthInBytes);
	call_number(&call, Height);
	call_number(&call, ElementSizeBytes);
	call_send(&call);
	answer_bytes(&call, dptr, sizeof *dptr);
	answer_bytes(&call, pPitch, sizeof *pPitch);
	if (!call.error)
		memory_remember(call.remote, *dptr, *pPitch * Height, context, true);
	return call_end(&call);
}

int cuMemAllocAsync(uint64_t *dptr, size_t bytesize, uint64_t hStream)
{
	uint64_t context = context_current();
	struct call call;

	if (!dptr || !bytesize)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuMemAllocAsync, 0);
	call_number(&call, bytesize);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	answer_bytes(&call, dptr, sizeof *dptr);
	if (!call.error)
		memory_remember(call.remote, *dptr, bytesize, context, true);
	return call_end(&call);
}

/* Begin a call that frees: nobody waits, so it is seen here that there is something to free. */
static int begin_free(struct call *call, unsigned op, uint64_t at)
{
	struct remote *remote;
	struct range *range, found;
	bool good = false;

	if (client_state())
		return client_state();
	remote = owner(at, 1, &found);
	if (!remote)
		return CU_INVALID_VALUE;
	pthread_mutex_lock(&remote->known);
	range = table_range(&remote->memory, at, 1);
	good = range && range->base == at && range->counted;
	if (good)
		table_drop_range(&remote->memory, range);
	pthread_mutex_unlock(&remote->known);
	if (!good)
		return CU_INVALID_VALUE;
	call_on_device(call, op, CALL_ASYNC, (int)remote->gpu);
	/* It is freed in the context that it was allocated in, whichever is the current one. */
	call->context = handle_there(found.under);
	call_number(call, at);
	return CU_SUCCESS;
}

int cuMemFree_v2(uint64_t dptr)
{
	struct call call;
	int result = dptr ? begin_free(&call, OP_cuMemFree_v2, dptr) : client_state();

	if (!dptr || result)
		return result;
	call_send(&call);
	return call_end(&call);
}

int cuMemFreeAsync(uint64_t dptr, uint64_t hStream)
{
	struct call call;
	int result = dptr ? begin_free(&call, OP_cuMemFreeAsync, dptr) : client_state();

	if (!dptr || result)
		return result;
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemGetAddressRange_v2(uint64_t *pbase, size_t *psize, uint64_t dptr)
{
	struct range found;

	if (client_state())
		return client_state();
	if (!owner(dptr, 1, &found))
		return CU_NOT_FOUND;
	if (pbase)
		*pbase = found.base;
	if (psize)
		*psize = found.size;
	return CU_SUCCESS;
}

/* Pinned memory */

static bool find_pinned(const void *at, size_t size, struct range *found)
{
	struct range *range;

	pthread_mutex_lock(&pinned_lock);
	range = table_range(&pinned, (uintptr_t)at, size);
	if (range)
		*found = *range;
	pthread_mutex_unlock(&pinned_lock);
	return range;
}

static bool drop_pinned(const void *at, bool allocated, size_t *size)
{
	struct range *range;
	bool good;

	pthread_mutex_lock(&pinned_lock);
	range = table_range(&pinned, (uintptr_t)at, 1);
	good = range && range->base == (uintptr_t)at && range->counted == allocated;
	if (good) {
		*size = range->size;
		table_drop_range(&pinned, range);
	}
	pthread_mutex_unlock(&pinned_lock);
	return good;
}

static bool add_pinned(const void *at, size_t size, unsigned flags, bool allocated)
{
	struct range range = {.base = (uintptr_t)at, .size = size, .under = flags, .counted = allocated};
	bool good;

	pthread_mutex_lock(&pinned_lock);
	good = table_add_range(&pinned, range);
	pthread_mutex_unlock(&pinned_lock);
	return good;
}

int cuMemHostAlloc(void **pp, size_t bytesize, unsigned Flags)
{
	enum { KNOWN_FLAGS = 7 };
	void *memory;

	if (client_state())
		return client_state();
	if (!context_current())
		return CU_INVALID_CONTEXT;
	if (!pp || !bytesize || Flags > KNOWN_FLAGS)
		return CU_INVALID_VALUE;
	memory = mmap(NULL, bytesize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return CU_OUT_OF_MEMORY;
	if (!add_pinned(memory, bytesize, Flags, true)) {
		munmap(memory, bytesize);
		return CU_OUT_OF_MEMORY;
	}
	*pp = memory;
	return CU_SUCCESS;
}

int cuMemAllocHost_v2(void **pp, size_t bytesize)
{
	return cuMemHostAlloc(pp, bytesize, 0);
}

int cuMemFreeHost(void *p)
{
	size_t size;

	if (!p)
		return client_state();
	if (!drop_pinned(p, true, &size))
		return CU_INVALID_VALUE;
	/* A copy into it may be on its way still. */
	if (context_current())
		cuCtxSynchronize();
	munmap(p, size);
	return CU_SUCCESS;
}

int cuMemHostGetFlags(unsigned *pFlags, void *p)
{
	struct range found;

	if (!pFlags || !find_pinned(p, 1, &found))
		return CU_INVALID_VALUE;
	*pFlags = (unsigned)found.under;
	return CU_SUCCESS;
}

int cuMemHostRegister_v2(void *p, size_t bytesize, unsigned Flags)
{
	struct range found;

	if (client_state())
		return client_state();
	if (!p || !bytesize)
		return CU_INVALID_VALUE;
	if (find_pinned(p, 1, &found) || !add_pinned(p, bytesize, Flags, false))
		return CU_HOST_MEMORY_ALREADY_REGISTERED;
	return CU_SUCCESS;
}

int cuMemHostUnregister(void *p)
{
	size_t size;

	if (client_state())
		return client_state();
	if (!drop_pinned(p, false, &size))
		return CU_HOST_MEMORY_NOT_REGISTERED;
	if (context_current())
		cuCtxSynchronize();
	return CU_SUCCESS;
}

/* Copies */

/* CUDA says of a copy from pageable memory that it returns once the bytes are taken, which a socket does. */
static int write_to(uint64_t to, const uint8_t *from, size_t size, uint64_t stream, bool async)
{
	struct range found;
	struct call call;
	int result = CU_SUCCESS;

	if (client_state())
		return client_state();
	if (!client_gpu_of(context_current()))
		return CU_INVALID_CONTEXT;
	if (size && (!from || !lookup(client_gpu_of(context_current()), to, size, &found)))
		return CU_INVALID_VALUE;
	for (size_t at = 0; at < size && !result; at += PIECE) {
		call_in_context(&call, OP_write, CALL_ASYNC);
		call_number(&call, to + at);
		call_handle(&call, stream, HANDLE_STREAM);
		call_number(&call, async);
		call_payload(&call, from + at, size - at < PIECE ? size - at : PIECE);
		call_send(&call);
		result = call_end(&call);
	}
	return result;
}

/* Ask for a piece; what comes goes straight to where it belongs. */
static bool ask(struct remote *remote, uint64_t from, size_t size, uint64_t stream, bool async, bool last,
		struct waiter *waiter)
{
	uint8_t bytes[32];
	struct request request = {.length = sizeof bytes, .op = OP_read, .flags = REQUEST_ANSWER};
	struct iovec piece = {.iov_base = bytes, .iov_len = sizeof bytes};
	uint64_t numbers[4] = {from, size, stream, async};

	request.flags |= last && !async ? REQUEST_DELIVER : 0;
	request.context = handle_there(context_current());
	for (unsigned i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(numbers[i / 8] >> i % 8 * 8);
	return remote_send(remote, &request, &piece, 1, waiter);
}

static int check_read(struct remote **remote, const uint8_t *to, uint64_t from, size_t size, uint64_t *stream)
{
	struct range found;

	if (client_state())
		return client_state();
	*remote = client_gpu_of(context_current());
	if (!*remote)
		return CU_INVALID_CONTEXT;
	if (*stream > STREAM_PER_THREAD && client_gpu_of(*stream) != *remote)
		return CU_INVALID_HANDLE;
	*stream = handle_there(*stream);
	return size && (!to || !lookup(*remote, from, size, &found)) ? CU_INVALID_VALUE : CU_SUCCESS;
}

/* All pieces are asked for before the first is waited for. */
static int read_waiting(uint8_t *to, uint64_t from, size_t size, uint64_t stream, bool async)
{
	size_t count = (size + PIECE - 1) / PIECE, asked = 0;
	struct waiter *waiters;
	struct remote *remote;
	int result = check_read(&remote, to, from, size, &stream);

	if (result || !size)
		return result;
	waiters = calloc(count, sizeof *waiters);
	if (!waiters)
		return CU_OUT_OF_MEMORY;
	for (; asked < count; asked++) {
		size_t at = asked * PIECE, length = size - at < PIECE ? size - at : PIECE;

		waiters[asked] = (struct waiter){.to = to + at, .room = length};
		if (!ask(remote, from + at, length, stream, async, asked + 1 == count, &waiters[asked]))
			break;
	}
	for (size_t i = 0; i < asked; i++) {
		const struct answer *answer = &waiters[i].answer;

		if (!remote_wait(remote, &waiters[i]))
			result = CU_DEVICE_UNAVAILABLE;
		else if (!result)
			result = answer->result ? answer->result : answer->late;
	}
	free(waiters);
	return asked < count ? CU_DEVICE_UNAVAILABLE : result;
}

static int read_later(uint8_t *to, uint64_t from, size_t size, uint64_t stream)
{
	struct remote *remote;
	int result = check_read(&remote, to, from, size, &stream);

	for (size_t at = 0; at < size && !result; at += PIECE) {
		size_t length = size - at < PIECE ? size - at : PIECE;
		struct waiter *waiter = calloc(1, sizeof *waiter);

		if (!waiter)
			return CU_OUT_OF_MEMORY;
		*waiter = (struct waiter){.to = to + at, .room = length, .own = true};
		if (!ask(remote, from + at, length, stream, true, false, waiter))
			result = CU_DEVICE_UNAVAILABLE;
	}
	return result;
}

int cuMemcpyHtoD_v2(uint64_t dstDevice, const void *srcHost, size_t ByteCount)
{
	return write_to(dstDevice, srcHost, ByteCount, 0, false);
}

int cuMemcpyHtoDAsync_v2(uint64_t dstDevice, const void *srcHost, size_t ByteCount, uint64_t hStream)
{
	return write_to(dstDevice, srcHost, ByteCount, hStream, true);
}

int cuMemcpyDtoH_v2(void *dstHost, uint64_t srcDevice, size_t ByteCount)
{
	return read_waiting(dstHost, srcDevice, ByteCount, 0, false);
}

/* Only a copy to pinned memory goes on by itself; programs rely on it. */
int cuMemcpyDtoHAsync_v2(void *dstHost, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	struct range found;

	if (ByteCount && find_pinned(dstHost, ByteCount, &found))
		return read_later(dstHost, srcDevice, ByteCount, hStream);
	return read_waiting(dstHost, srcDevice, ByteCount, hStream, true);
}

static void *host_of(uint64_t at)
{
	return (void *)(uintptr_t)at;
}

int cuMemcpyAsync(uint64_t dst, uint64_t src, size_t ByteCount, uint64_t hStream)
{
	struct remote *remote = client_gpu_of(context_current());
	struct range found;
	bool to = lookup(remote, dst, ByteCount, &found), from = lookup(remote, src, ByteCount, &found);

	if (to && from)
		return cuMemcpyDtoDAsync_v2(dst, src, ByteCount, hStream);
	if (to)
		return cuMemcpyHtoDAsync_v2(dst, host_of(src), ByteCount, hStream);
	if (from)
		return cuMemcpyDtoHAsync_v2(host_of(dst), src, ByteCount, hStream);
	return client_state() ? client_state() : remote ? CU_INVALID_VALUE : CU_INVALID_CONTEXT;
}

int cuMemcpy(uint64_t dst, uint64_t src, size_t ByteCount)
{
	struct remote *remote = client_gpu_of(context_current());
	struct range found;

	if (lookup(remote, src, ByteCount, &found) && !lookup(remote, dst, ByteCount, &found))
		return cuMemcpyDtoH_v2(host_of(dst), src, ByteCount);
	return cuMemcpyAsync(dst, src, ByteCount, 0);
}

/* CUDA_MEMCPY2D */
struct copy_2d {
	size_t from_x, from_y;
	unsigned from_type;
	const uint8_t *from_host;
	uint64_t from_device, from_array;
	size_t from_pitch, to_x, to_y;
	unsigned to_type;
	uint8_t *to_host;
	uint64_t to_device, to_array;
	size_t to_pitch, width, height;
};

enum { TYPE_HOST = 1, TYPE_DEVICE = 2, TYPE_ARRAY = 3, TYPE_UNIFIED = 4 };

/* What a pointer of any kind is. */
static void settle(unsigned *type, uint64_t *device, const uint8_t **host)
{
	struct range found;

	if (*type != TYPE_UNIFIED)
		return;
	*type = lookup(client_gpu_of(context_current()), *device, 1, &found) ? TYPE_DEVICE : TYPE_HOST;
	*host = host_of(*device);
}

static int copy_on_device(const struct copy_2d *copy, uint64_t to, uint64_t from, uint64_t stream)
{
	struct call call;

	call_in_context(&call, OP_copy_rows, CALL_ASYNC);
	call_number(&call, to);
	call_number(&call, copy->to_pitch);
	call_number(&call, from);
	call_number(&call, copy->from_pitch);
	call_number(&call, copy->width);
	call_number(&call, copy->height);
	call_handle(&call, stream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

static int copy_2d(const void *what, uint64_t stream, bool async)
{
	struct copy_2d copy;
	uint64_t to, from;
	int result = CU_SUCCESS;

	if (client_state())
		return client_state();
	if (!what)
		return CU_INVALID_VALUE;
	memcpy(&copy, what, sizeof copy);
	settle(&copy.from_type, &copy.from_device, &copy.from_host);
	settle(&copy.to_type, &copy.to_device, (const uint8_t **)&copy.to_host);
	if (copy.from_type == TYPE_ARRAY || copy.to_type == TYPE_ARRAY)
		return CU_NOT_SUPPORTED;
	/* A pitch of 0 means that rows follow each other. */
	copy.from_pitch = copy.from_pitch ? copy.from_pitch : copy.width;
	copy.to_pitch = copy.to_pitch ? copy.to_pitch : copy.width;
	if (copy.from_pitch < copy.width || copy.to_pitch < copy.width)
		return CU_INVALID_VALUE;
	/* As numbers: a pointer that is not used may be NULL. */
	copy.from_host = host_of((uintptr_t)copy.from_host + copy.from_y * copy.from_pitch + copy.from_x);
	copy.to_host = host_of((uintptr_t)copy.to_host + copy.to_y * copy.to_pitch + copy.to_x);
	to = copy.to_device + copy.to_y * copy.to_pitch + copy.to_x;
	from = copy.from_device + copy.from_y * copy.from_pitch + copy.from_x;
	if (copy.from_type == TYPE_DEVICE && copy.to_type == TYPE_DEVICE)
		return copy_on_device(&copy, to, from, stream);
	for (size_t row = 0; row < copy.height && !result; row++) {
		uint8_t *to_row = host_of((uintptr_t)copy.to_host + row * copy.to_pitch);
		const uint8_t *from_row = host_of((uintptr_t)copy.from_host + row * copy.from_pitch);

		if (copy.to_type == TYPE_DEVICE && copy.from_type == TYPE_HOST)
			result = write_to(to + row * copy.to_pitch, from_row, copy.width, stream, async);
		else if (copy.from_type == TYPE_DEVICE && copy.to_type == TYPE_HOST)
			result = read_later(to_row, from + row * copy.from_pitch, copy.width, stream);
		else
			memcpy(to_row, from_row, copy.width);
	}
	if (!result && copy.from_type == TYPE_DEVICE)
		result = cuStreamSynchronize(stream); /* its answer comes behind the rows */
	return result;
}

int cuMemcpy2D_v2(const void *pCopy)
{
	return copy_2d(pCopy, 0, false);
}

int cuMemcpy2DUnaligned_v2(const void *pCopy)
{
	return copy_2d(pCopy, 0, false);
}

int cuMemcpy2DAsync_v2(const void *pCopy, uint64_t hStream)
{
	return copy_2d(pCopy, hStream, true);
}

/* What a pointer is (CUpointer_attribute) */

enum {
	POINTER_CONTEXT = 1,
	POINTER_MEMORY_TYPE,
	POINTER_DEVICE,
	POINTER_HOST,
	POINTER_IS_MANAGED = 8,
	POINTER_ORDINAL,
	POINTER_IPC,
	POINTER_START,
	POINTER_SIZE,
	POINTER_MAPPED,
};

static int pointer_attribute(void *data, int attribute, uint64_t ptr, bool *known)
{
	struct range found;
	struct remote *remote = owner(ptr, 1, &found);
	bool host = !remote && find_pinned(host_of(ptr), 1, &found);

	*known = remote || host;
	if (!*known)
		return CU_INVALID_VALUE;
	switch (attribute) {
	case POINTER_CONTEXT:
		*(uint64_t *)data = remote && handle_type(found.under) == HANDLE_CONTEXT ? found.under : context_current();
		return CU_SUCCESS;
	case POINTER_MEMORY_TYPE:
		*(unsigned *)data = host ? TYPE_HOST : TYPE_DEVICE;
		return CU_SUCCESS;
	case POINTER_DEVICE:
		*(uint64_t *)data = ptr;
		return host ? CU_INVALID_VALUE : CU_SUCCESS;
	case POINTER_HOST:
		*(void **)data = host_of(ptr);
		return host ? CU_SUCCESS : CU_INVALID_VALUE;
	case POINTER_IS_MANAGED:
	case POINTER_IPC:
		*(bool *)data = false;
		return CU_SUCCESS;
	case POINTER_ORDINAL:
		*(int *)data = remote ? (int)remote->gpu : 0;
		return CU_SUCCESS;
	case POINTER_START:
		*(uint64_t *)data = found.base;
		return CU_SUCCESS;
	case POINTER_SIZE:
		*(size_t *)data = found.size;
		return CU_SUCCESS;
	case POINTER_MAPPED:
		*(bool *)data = true;
		return CU_SUCCESS;
	default:
		return CU_NOT_SUPPORTED;
	}
}

int cuPointerGetAttribute(void *data, int attribute, uint64_t ptr)
{
	bool known;

	if (!data)
		return CU_INVALID_VALUE;
	return client_state() ? client_state() : pointer_attribute(data, attribute, ptr, &known);
}

/* Of a pointer that CUDA does not know everything is NULL, and nothing is wrong. */
int cuPointerGetAttributes(unsigned numAttributes, int *attributes, void **data, uint64_t ptr)
{
	bool known;

	if (client_state())
		return client_state();
	if (!attributes || !data)
		return CU_INVALID_VALUE;
	for (unsigned i = 0; i < numAttributes; i++) {
		int attribute = attributes[i];
		bool wide = attribute != POINTER_MEMORY_TYPE && attribute != POINTER_ORDINAL &&
			    attribute != POINTER_IS_MANAGED && attribute != POINTER_IPC && attribute != POINTER_MAPPED;

		if (!pointer_attribute(data[i], attribute, ptr, &known))
			continue;
		if (wide)
			*(uint64_t *)data[i] = 0;
		else if (attribute == POINTER_MEMORY_TYPE)
			*(unsigned *)data[i] = 0;
		else if (attribute == POINTER_ORDINAL)
			*(int *)data[i] = -2; /* as CUDA has it */
		else
			*(bool *)data[i] = false;
	}
	return CU_SUCCESS;
}
