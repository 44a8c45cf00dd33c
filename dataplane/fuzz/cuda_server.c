/* What a guest sends to the server of a lent GPU's CUDA calls: requests one after the other, their headers with them.
 * The driver behind it sees that no pointer and no handle comes through that is not the client's. */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "session.h"

enum { OBJECTS = 64, MEMORY = 1 << 16 };

static uint64_t objects_made, memory_at;

static void must(bool condition)
{
	if (!condition)
		abort();
}

static int good(void)
{
	return CU_SUCCESS;
}

static int make(uint64_t *made)
{
	*made = 0x1000 + objects_made++;
	return CU_SUCCESS;
}

static void is_made(uint64_t object)
{
	must(object >= 0x1000 && object < 0x1000 + objects_made);
}

static int make_context(uint64_t *made, int device)
{
	(void)device;
	*made = 0xc0;
	return CU_SUCCESS;
}

static int load(uint64_t *made, const void *image, unsigned count, int *options, void **values)
{
	must(image && count >= 4 && options && values);
	return make(made);
}

static int get_function(uint64_t *made, uint64_t module, const char *name)
{
	is_made(module);
	must(strlen(name) < TEXT_MAX);
	return make(made);
}

static int parameter(uint64_t function, size_t index, size_t *offset, size_t *size)
{
	is_made(function);
	*offset = 8 * index;
	*size = 8;
	return index < 4 ? CU_SUCCESS : CU_INVALID_VALUE;
}

static int launch(uint64_t function, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f, unsigned shared,
		  uint64_t stream, void **parameters, void **extra)
{
	uint8_t sum = 0;

	(void)(a + b + c + d + e + f + shared);
	is_made(function);
	must(!parameters && (stream <= STREAM_PER_THREAD || stream >= 0x1000));
	for (size_t i = 0; extra && i < *(size_t *)extra[3]; i++)
		sum = (uint8_t)(sum + ((uint8_t *)extra[1])[i]);
	(void)sum;
	return CU_SUCCESS;
}

static int allocate(uint64_t *made, size_t size)
{
	if (!size || size > MEMORY)
		return CU_OUT_OF_MEMORY;
	*made = memory_at += 2 * MEMORY;
	return CU_SUCCESS;
}

static int give_back(uint64_t at)
{
	must(at && at <= memory_at && at % (2 * MEMORY) == 0);
	return CU_SUCCESS;
}

static void is_memory(uint64_t at, size_t size)
{
	must(at >= 2 * MEMORY && at < memory_at + MEMORY && size <= MEMORY && at % (2 * MEMORY) + size <= MEMORY);
}

static int to_device(uint64_t to, const void *from, size_t size)
{
	static uint8_t taken[MEMORY];

	is_memory(to, size);
	memcpy(taken, from, size);
	return CU_SUCCESS;
}

static int from_device(void *to, uint64_t from, size_t size)
{
	is_memory(from, size);
	memset(to, 1, size);
	return CU_SUCCESS;
}

static int on_device(uint64_t to, uint64_t from, size_t size)
{
	if (size)
		is_memory(to, size);
	if (size)
		is_memory(from, size);
	return CU_SUCCESS;
}

static int fill(uint64_t to, unsigned char value, size_t size)
{
	(void)value;
	if (size)
		is_memory(to, size);
	return CU_SUCCESS;
}

static int stream(uint64_t *made, unsigned flags)
{
	(void)flags;
	return make(made);
}

static const struct driver *driver(void)
{
	static struct driver made;

#define GOOD(name, parameters) made.name = (int(*) parameters)(uintptr_t)good;
	DRIVER_CALLS(GOOD)
	made.cuDevicePrimaryCtxRetain = make_context;
	made.cuModuleLoadDataEx = load;
	made.cuModuleGetFunction = get_function;
	made.cuFuncGetParamInfo = parameter;
	made.cuLaunchKernel = launch;
	made.cuMemAlloc_v2 = allocate;
	made.cuMemFree_v2 = give_back;
	made.cuMemcpyHtoD_v2 = to_device;
	made.cuMemcpyDtoH_v2 = from_device;
	made.cuMemcpyDtoD_v2 = on_device;
	made.cuMemsetD8_v2 = fill;
	made.cuStreamCreate = stream;
	made.cuEventCreate = stream;
	return &made;
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static struct account account = {.limit = 1 << 20};
	static struct client client;
	struct session session;
	struct writer out = {.data = NULL};
	bool going = true;

	memset(&client, 0, sizeof client);
	account.memory = account.contexts = 0;
	objects_made = memory_at = 0;
	session_init(&session, driver(), &account, &client, 3);
	session.greeted = true;
	while (going && size >= REQUEST_SIZE) {
		struct request request;
		struct answer answer;
		uint8_t *body;

		if (!cuda_request_parse(data, OPS, &request) || request.length > size - REQUEST_SIZE)
			break;
		/* Exactly as large as it is, so that a sanitizer sees a read beyond it. */
		body = malloc(request.length ? request.length : 1);
		if (!body)
			break;
		memcpy(body, data + REQUEST_SIZE, request.length);
		going = session_serve(&session, &request, body, &out, &answer);
		must(!going || out.used == ANSWER_SIZE + answer.length);
		must(account.memory <= account.limit && account.contexts <= CONTEXTS_MAX);
		free(body);
		data += REQUEST_SIZE + request.length;
		size -= REQUEST_SIZE + request.length;
	}
	session_free(&session);
	writer_free(&out);
	return 0;
}
