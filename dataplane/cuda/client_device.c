/* The guest's part of the calls about start, errors, devices and contexts. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "generated/api.h"

/* A file for each GPU, named for its port; in it, the path of its socket. */
#define FOLDER "/run/vmcoal/cuda.d"

enum { DEPTH_MAX = 64, NAME_LENGTH = 256, MAX_THREADS_PER_BLOCK = 1 };

static struct {
	pthread_mutex_t lock;
	int state; /* CU_NOT_INITIALIZED, CU_SUCCESS */
	bool watches_forks;
	unsigned count;
	struct remote *gpus[GPUS_MAX];
} client = {.lock = PTHREAD_MUTEX_INITIALIZER, .state = CU_NOT_INITIALIZED};

static _Thread_local struct {
	uint64_t stack[DEPTH_MAX];
	unsigned depth;
} contexts;

int client_state(void)
{
	return client.state;
}

unsigned client_gpus(void)
{
	return client.count;
}

struct remote *client_gpu(int device)
{
	return device >= 0 && (unsigned)device < client.count ? client.gpus[device] : NULL;
}

struct remote *client_gpu_of(uint64_t handle)
{
	return client_gpu((int)(handle >> HANDLE_GPU_SHIFT) - 1);
}

/* CUDA does not work in the child of a process that has initialized it (CUDA C++ Programming Guide, "Initialization").
 * Its copies of the connections are closed, so that the lender sees the end of the one that has them. */
static void in_child(void)
{
	for (unsigned i = 0; i < client.count; i++)
		close(client.gpus[i]->fd);
	client.count = 0;
	client.state = CU_NOT_INITIALIZED;
	contexts.depth = 0;
	pthread_mutex_init(&client.lock, NULL);
}

/* What a program called last without waiting for it still gets there. */
__attribute__((destructor)) static void at_end(void)
{
	for (unsigned i = 0; i < client.count; i++)
		remote_end(client.gpus[i]);
}

static void open_gpu(const char *folder, const char *name)
{
	char path[2 * NAME_LENGTH], socket[NAME_LENGTH] = "";
	struct remote *remote;
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	file = fopen(path, "re");
	if (!file)
		return;
	if (!fgets(socket, sizeof socket, file))
		socket[0] = 0;
	fclose(file);
	socket[strcspn(socket, "\n")] = 0;
	remote = calloc(1, sizeof *remote);
	if (remote && *socket && remote_open(remote, socket, client.count))
		client.gpus[client.count++] = remote;
	else
		free(remote);
}

static int is_gpu(const struct dirent *entry)
{
	return entry->d_name[0] != '.' && !strstr(entry->d_name, ".new") && strlen(entry->d_name) < NAME_LENGTH / 2;
}

static void find_gpus(void)
{
	const char *folder = secure_getenv("VMCOAL_CUDA_FOLDER");
	struct dirent **names;
	int count;

	if (!folder || strlen(folder) >= NAME_LENGTH)
		folder = FOLDER;
	count = scandir(folder, &names, is_gpu, alphasort);
	for (int i = 0; i < count; i++) {
		if (client.count < GPUS_MAX)
			open_gpu(folder, names[i]->d_name);
		free(names[i]);
	}
	if (count >= 0)
		free(names);
}

int cuInit(unsigned Flags)
{
	int state;

	if (Flags)
		return CU_INVALID_VALUE;
	pthread_mutex_lock(&client.lock);
	if (client.state == CU_NOT_INITIALIZED) {
		find_gpus();
		if (client.count)
			client.state = CU_SUCCESS;
		if (client.count && !client.watches_forks)
			client.watches_forks = !pthread_atfork(NULL, NULL, in_child);
	}
	state = client.state ? CU_NO_DEVICE : CU_SUCCESS;
	pthread_mutex_unlock(&client.lock);
	return state;
}

int cuDriverGetVersion(int *driverVersion)
{
	int version = CUDA_HEADER_VERSION;

	if (!driverVersion)
		return CU_INVALID_VALUE;
	for (unsigned i = 0; i < client.count; i++)
		if (client.gpus[i]->version < version)
			version = client.gpus[i]->version;
	*driverVersion = version;
	return CU_SUCCESS;
}

int cuGetErrorName(int error, const char **pStr)
{
	const struct cuda_error *found = cuda_error_of(error);

	if (pStr)
		*pStr = found ? found->name : NULL;
	return found && pStr ? CU_SUCCESS : CU_INVALID_VALUE;
}

int cuGetErrorString(int error, const char **pStr)
{
	const struct cuda_error *found = cuda_error_of(error);

	if (pStr)
		*pStr = found ? found->text : NULL;
	return found && pStr ? CU_SUCCESS : CU_INVALID_VALUE;
}

int cuProfilerStart(void)
{
	return client.state;
}

int cuProfilerStop(void)
{
	return client.state;
}

/* Devices */

int cuDeviceGetCount(int *count)
{
	if (!count)
		return CU_INVALID_VALUE;
	*count = (int)client.count;
	return client.state;
}

int cuDeviceGet(int *device, int ordinal)
{
	if (!device)
		return CU_INVALID_VALUE;
	if (client.state)
		return client.state;
	if (!client_gpu(ordinal))
		return CU_INVALID_DEVICE;
	*device = ordinal;
	return CU_SUCCESS;
}

/* Two lenders may have a GPU at the same address: the first one is meant. */
int cuDeviceGetByPCIBusId(int *dev, const char *pciBusId)
{
	char found[NAME_LENGTH];

	if (!dev || !pciBusId)
		return CU_INVALID_VALUE;
	if (client.state)
		return client.state;
	for (unsigned i = 0; i < client.count; i++)
		if (!cuDeviceGetPCIBusId(found, sizeof found, (int)i) && !strcasecmp(found, pciBusId)) {
			*dev = (int)i;
			return CU_SUCCESS;
		}
	return CU_INVALID_VALUE;
}

int cuDeviceCanAccessPeer(int *canAccessPeer, int dev, int peerDev)
{
	if (!canAccessPeer)
		return CU_INVALID_VALUE;
	if (client.state)
		return client.state;
	if (!client_gpu(dev) || !client_gpu(peerDev))
		return CU_INVALID_DEVICE;
	*canAccessPeer = 0;
	return CU_SUCCESS;
}

int device_attribute(struct remote *remote, int attribute, int *value)
{
	bool keeps = attribute >= 0 && attribute < ATTRIBUTES_MAX, has = false;
	struct call call;

	pthread_mutex_lock(&remote->known);
	if (keeps && remote->has_attribute[attribute]) {
		has = true;
		*value = remote->attributes[attribute];
	}
	pthread_mutex_unlock(&remote->known);
	if (has)
		return atomic_load(&remote->lost) ? CU_DEVICE_UNAVAILABLE : CU_SUCCESS;
	call_on_device(&call, OP_cuDeviceGetAttribute, 0, (int)remote->gpu);
	call_number(&call, (uint64_t)attribute);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, value, sizeof *value);
	if (!call.error && keeps) {
		pthread_mutex_lock(&remote->known);
		remote->attributes[attribute] = *value;
		remote->has_attribute[attribute] = true;
		pthread_mutex_unlock(&remote->known);
	}
	return call_end(&call);
}

int cuDeviceGetAttribute(int *pi, int attrib, int dev)
{
	struct remote *remote = client_gpu(dev);

	if (!pi)
		return CU_INVALID_VALUE;
	if (client.state)
		return client.state;
	return remote ? device_attribute(remote, attrib, pi) : CU_INVALID_DEVICE;
}

/* Contexts: each thread has a stack of them, and the lender is told the top one with each call. */

uint64_t context_current(void)
{
	return contexts.depth ? contexts.stack[contexts.depth - 1] : 0;
}

static int push(uint64_t ctx)
{
	if (contexts.depth == DEPTH_MAX)
		return CU_OUT_OF_MEMORY;
	contexts.stack[contexts.depth++] = ctx;
	return CU_SUCCESS;
}

static bool is_context(uint64_t ctx)
{
	return handle_type(ctx) == HANDLE_CONTEXT && client_gpu_of(ctx);
}

int cuCtxPushCurrent_v2(uint64_t ctx)
{
	if (client.state)
		return client.state;
	return is_context(ctx) ? push(ctx) : CU_INVALID_CONTEXT;
}

int cuCtxPopCurrent_v2(uint64_t *pctx)
{
	if (client.state)
		return client.state;
	if (!contexts.depth)
		return CU_INVALID_CONTEXT;
	if (pctx)
		*pctx = context_current();
	contexts.depth--;
	return CU_SUCCESS;
}

int cuCtxSetCurrent(uint64_t ctx)
{
	if (client.state)
		return client.state;
	if (ctx && !is_context(ctx))
		return CU_INVALID_CONTEXT;
	if (contexts.depth)
		contexts.depth--;
	return ctx ? push(ctx) : CU_SUCCESS;
}

int cuCtxGetCurrent(uint64_t *pctx)
{
	if (!pctx)
		return CU_INVALID_VALUE;
	*pctx = context_current();
	return client.state;
}

int cuCtxGetDevice(int *device)
{
	const struct remote *remote = client_gpu_of(context_current());

	if (!device)
		return CU_INVALID_VALUE;
	if (client.state)
		return client.state;
	if (!remote)
		return CU_INVALID_CONTEXT;
	*device = (int)remote->gpu;
	return CU_SUCCESS;
}

int cuCtxCreate_v2(uint64_t *pctx, unsigned flags, int dev)
{
	uint64_t made = 0;
	struct call call;
	int result;

	if (!pctx)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuCtxCreate_v2, 0, dev);
	call_number(&call, flags);
	call_number(&call, 0);
	call_send(&call);
	answer_handle(&call, &made);
	result = call_end(&call);
	if (!result)
		result = push(made);
	if (!result)
		*pctx = made;
	return result;
}

/* Of what v3 and v4 have besides, nothing goes through a connection. */
int cuCtxCreate_v3(uint64_t *pctx, void *paramsArray, int numParams, unsigned flags, int dev)
{
	return paramsArray || numParams ? unsupported(__func__) : cuCtxCreate_v2(pctx, flags, dev);
}

int cuCtxCreate_v4(uint64_t *pctx, void *ctxCreateParams, unsigned flags, int dev)
{
	return ctxCreateParams ? unsupported(__func__) : cuCtxCreate_v2(pctx, flags, dev);
}

int cuCtxDestroy_v2(uint64_t ctx)
{
	struct call call;
	int result;

	if (client.state)
		return client.state;
	if (!is_context(ctx))
		return CU_INVALID_CONTEXT;
	call_on_handle(&call, OP_cuCtxDestroy_v2, 0, ctx);
	if (context_current() == ctx) {
		contexts.depth--;
		call.context = 0;
	}
	call_handle(&call, ctx, HANDLE_CONTEXT);
	call_send(&call);
	result = call_end(&call);
	if (!result)
		memory_forget(client_gpu_of(ctx), ctx);
	return result;
}

int cuCtxGetId(uint64_t ctx, uint64_t *ctxId)
{
	struct call call;

	if (!ctxId)
		return CU_INVALID_VALUE;
	ctx = ctx ? ctx : context_current();
	call_on_handle(&call, OP_cuCtxGetId, 0, ctx);
	call_handle(&call, ctx, HANDLE_CONTEXT);
	call_send(&call);
	answer_bytes(&call, ctxId, sizeof *ctxId);
	return call_end(&call);
}

int cuCtxGetApiVersion(uint64_t ctx, unsigned *version)
{
	struct call call;

	if (!version)
		return CU_INVALID_VALUE;
	ctx = ctx ? ctx : context_current();
	call_on_handle(&call, OP_cuCtxGetApiVersion, 0, ctx);
	call_handle(&call, ctx, HANDLE_CONTEXT);
	call_send(&call);
	answer_bytes(&call, version, sizeof *version);
	return call_end(&call);
}
