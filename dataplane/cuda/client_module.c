/* The guest's part of the calls about modules, linking and launches. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "generated/api.h"
#include "image.h"

/* Options of the JIT compiler (CUjit_option) with a meaning for who gives them. */
enum { JIT_WALL_TIME = 2, JIT_INFO_LOG, JIT_INFO_LOG_SIZE, JIT_ERROR_LOG, JIT_ERROR_LOG_SIZE };

struct options {
	unsigned count;
	const int *names;
	void **values;
};

static bool is_log(int name)
{
	return name >= JIT_WALL_TIME && name <= JIT_ERROR_LOG_SIZE;
}

/* The buffers are filled in here, of the answer's logs; the rest goes along. */
static void call_options(struct call *call, const struct options *options)
{
	uint64_t count = 0;

	for (unsigned i = 0; i < options->count; i++)
		count += !is_log(options->names[i]);
	call_number(call, count);
	for (unsigned i = 0; i < options->count; i++)
		if (!is_log(options->names[i])) {
			call_number(call, (uint64_t)options->names[i]);
			call_number(call, (uint32_t)(uintptr_t)options->values[i]);
		}
}

static void fill_log(const struct options *options, int buffer, const uint8_t *log, size_t size)
{
	char *to = NULL;
	size_t room = 0;

	for (unsigned i = 0; i < options->count; i++) {
		if (options->names[i] == buffer)
			to = options->values[i];
		if (options->names[i] == buffer + 1)
			room = (uint32_t)(uintptr_t)options->values[i];
	}
	if (!to || !room)
		return;
	size = size < room - 1 ? size : room - 1;
	if (size)
		memcpy(to, log, size);
	to[size] = 0;
	for (unsigned i = 0; i < options->count; i++)
		if (options->names[i] == buffer + 1)
			options->values[i] = (void *)(uintptr_t)size;
}

/* The logs come with a failure too. */
static void answer_logs(struct call *call, const struct options *options)
{
	const uint8_t *log;
	size_t size;

	log = read_array(&call->in, LOG_MAX, &size);
	fill_log(options, JIT_INFO_LOG, log, size);
	log = read_array(&call->in, LOG_MAX, &size);
	fill_log(options, JIT_ERROR_LOG, log, size);
	for (unsigned i = 0; i < options->count; i++)
		if (options->names[i] == JIT_WALL_TIME)
			options->values[i] = NULL;
}

static int load(uint64_t *made, const void *image, const struct options *options, bool library)
{
	struct call call;
	uint64_t handle;
	size_t size;

	if (!made || !image || (options->count && (!options->names || !options->values)) || options->count > OPTIONS_MAX)
		return CU_INVALID_VALUE;
	image = image_unwrap(image);
	size = image ? image_size(image, BODY_MAX - SMALL_MAX) : 0;
	if (!size)
		return client_state() ? client_state() : CU_INVALID_IMAGE;
	/* A library belongs to no context, but a lender is to be chosen. */
	if (library && !context_current())
		call_anywhere(&call, OP_load_library, 0);
	else
		call_in_context(&call, library ? OP_load_library : OP_load, 0);
	call_options(&call, options);
	call_payload(&call, image, size);
	call.answer_max = 3 * LOG_MAX;
	call_send(&call);
	if (call.in.at) {
		handle = read_number(&call.in);
		answer_logs(&call, options);
		if (!call.error && call.in.bad)
			call.error = CU_UNKNOWN;
		if (!call.error)
			*made = handle_here(call.remote, handle);
	}
	return call_end(&call);
}

int cuModuleLoadDataEx(uint64_t *module, const void *image, unsigned numOptions, int *options, void **optionValues)
{
	struct options given = {numOptions, options, optionValues};

	return load(module, image, &given, false);
}

int cuModuleLoadData(uint64_t *module, const void *image)
{
	return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

int cuModuleLoadFatBinary(uint64_t *module, const void *fatCubin)
{
	return cuModuleLoadDataEx(module, fatCubin, 0, NULL, NULL);
}

/* A file's bytes and a NUL, which ends PTX; NULL: it cannot be read. */
static uint8_t *read_file(const char *path, size_t *size)
{
	FILE *file = fopen(path, "re");
	uint8_t *data = NULL;
	long length = -1;

	if (file && !fseek(file, 0, SEEK_END))
		length = ftell(file);
	if (length >= 0 && length < BODY_MAX && !fseek(file, 0, SEEK_SET))
		data = malloc((size_t)length + 1);
	if (data) {
		*size = fread(data, 1, (size_t)length, file);
		data[*size] = 0;
	}
	if (file)
		fclose(file);
	return data;
}

int cuModuleLoad(uint64_t *module, const char *fname)
{
	size_t size;
	uint8_t *data;
	int result;

	if (!module || !fname)
		return CU_INVALID_VALUE;
	data = read_file(fname, &size);
	if (!data)
		return CU_FILE_NOT_FOUND;
	result = cuModuleLoadData(module, data);
	free(data);
	return result;
}

int cuLibraryLoadData(uint64_t *library, const void *code, int *jitOptions, void **jitOptionsValues,
		      unsigned numJitOptions, int *libraryOptions, void **libraryOptionValues, unsigned numLibraryOptions)
{
	enum { BINARY_IS_PRESERVED = 1 };
	struct options given = {numJitOptions, jitOptions, jitOptionsValues};

	(void)libraryOptionValues;
	for (unsigned i = 0; i < numLibraryOptions; i++)
		if (!libraryOptions || libraryOptions[i] != BINARY_IS_PRESERVED)
			return unsupported(__func__);
	return load(library, code, &given, true);
}

int cuLibraryLoadFromFile(uint64_t *library, const char *fileName, int *jitOptions, void **jitOptionsValues,
			  unsigned numJitOptions, int *libraryOptions, void **libraryOptionValues,
			  unsigned numLibraryOptions)
{
	size_t size;
	uint8_t *data;
	int result;

	if (!library || !fileName)
		return CU_INVALID_VALUE;
	data = read_file(fileName, &size);
	if (!data)
		return CU_FILE_NOT_FOUND;
	result = cuLibraryLoadData(library, data, jitOptions, jitOptionsValues, numJitOptions, libraryOptions,
				   libraryOptionValues, numLibraryOptions);
	free(data);
	return result;
}

static int get_global(uint64_t *dptr, size_t *bytes, uint64_t of, enum handle_type type, unsigned op, const char *name)
{
	struct call call;
	uint64_t base = 0;
	size_t size = 0;

	if (!name)
		return CU_INVALID_VALUE;
	call_in_context(&call, op, 0);
	call_handle(&call, of, type);
	call_text(&call, name);
	call_send(&call);
	answer_bytes(&call, &base, sizeof base);
	answer_bytes(&call, &size, sizeof size);
	if (!call.error) {
		memory_remember(call.remote, base, size, of, false);
		if (dptr)
			*dptr = base;
		if (bytes)
			*bytes = size;
	}
	return call_end(&call);
}

int cuModuleGetGlobal_v2(uint64_t *dptr, size_t *bytes, uint64_t hmod, const char *name)
{
	return get_global(dptr, bytes, hmod, HANDLE_MODULE, OP_cuModuleGetGlobal_v2, name);
}

int cuLibraryGetGlobal(uint64_t *dptr, size_t *bytes, uint64_t library, const char *name)
{
	return get_global(dptr, bytes, library, HANDLE_LIBRARY, OP_cuLibraryGetGlobal, name);
}

/* Linking: everything is kept here until it is completed. */

struct linking {
	struct options options;
	int names[OPTIONS_MAX];
	void **values; /* the program's: the logs' sizes go there */
	void *kept[OPTIONS_MAX];
	struct input {
		struct input *next;
		int type;
		size_t size;
		char *name;
		uint8_t data[];
	} *first, **end;
	unsigned count;
	size_t size;
	void *cubin;
};

static struct linking *linking_of(uint64_t state)
{
	return (struct linking *)(uintptr_t)state;
}

int cuLinkCreate_v2(unsigned numOptions, int *options, void **optionValues, uint64_t *stateOut)
{
	struct linking *linking;

	if (client_state())
		return client_state();
	if (!context_current())
		return CU_INVALID_CONTEXT;
	if (!stateOut || numOptions > OPTIONS_MAX || (numOptions && (!options || !optionValues)))
		return CU_INVALID_VALUE;
	linking = calloc(1, sizeof *linking);
	if (!linking)
		return CU_OUT_OF_MEMORY;
	if (numOptions) {
		memcpy(linking->names, options, numOptions * sizeof *options);
		memcpy(linking->kept, optionValues, numOptions * sizeof *optionValues);
	}
	linking->values = optionValues;
	linking->options = (struct options){numOptions, linking->names, linking->kept};
	linking->end = &linking->first;
	*stateOut = (uintptr_t)linking;
	return CU_SUCCESS;
}

/* Options for one input are not carried: those of the whole hold for it. */
int cuLinkAddData_v2(uint64_t state, int type, void *data, size_t size, const char *name, unsigned numOptions,
		     int *options, void **optionValues)
{
	struct linking *linking = linking_of(state);
	struct input *input;

	(void)numOptions;
	(void)options;
	(void)optionValues;
	if (!linking)
		return CU_INVALID_HANDLE;
	if (!data || !size || size > BODY_MAX - SMALL_MAX - linking->size)
		return CU_INVALID_VALUE;
	input = malloc(sizeof *input + size);
	if (!input)
		return CU_OUT_OF_MEMORY;
	*input = (struct input){.type = type, .size = size, .name = strdup(name ? name : "")};
	memcpy(input->data, data, size);
	*linking->end = input;
	linking->end = &input->next;
	linking->size += size;
	linking->count++;
	return CU_SUCCESS;
}

int cuLinkAddFile_v2(uint64_t state, int type, const char *path, unsigned numOptions, int *options, void **optionValues)
{
	enum { PTX = 1 };
	uint8_t *data;
	size_t size;
	int result;

	if (!path)
		return CU_INVALID_VALUE;
	data = read_file(path, &size);
	if (!data)
		return CU_FILE_NOT_FOUND;
	result = cuLinkAddData_v2(state, type, data, size + (type == PTX), path, numOptions, options, optionValues);
	free(data);
	return result;
}

int cuLinkComplete(uint64_t state, void **cubinOut, size_t *sizeOut)
{
	struct linking *linking = linking_of(state);
	const uint8_t *cubin;
	struct call call;
	size_t size;

	if (!linking)
		return CU_INVALID_HANDLE;
	if (!cubinOut)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_link, 0);
	call_options(&call, &linking->options);
	call_number(&call, linking->count);
	for (const struct input *input = linking->first; input; input = input->next) {
		call_number(&call, (uint64_t)input->type);
		call_text(&call, input->name ? input->name : "");
		call_number(&call, input->size);
		call_bytes(&call, input->data, input->size);
	}
	call.answer_max = BODY_MAX;
	call_send(&call);
	if (call.in.at) {
		cubin = read_array(&call.in, BODY_MAX, &size);
		answer_logs(&call, &linking->options);
		for (unsigned i = 0; i < linking->options.count; i++)
			if (is_log(linking->names[i]))
				linking->values[i] = linking->kept[i];
		if (!call.error && (call.in.bad || !size))
			call.error = CU_UNKNOWN;
		if (!call.error) {
			free(linking->cubin);
			linking->cubin = malloc(size);
			if (!linking->cubin) {
				call.error = CU_OUT_OF_MEMORY;
			} else {
				memcpy(linking->cubin, cubin, size);
				*cubinOut = linking->cubin;
				if (sizeOut)
					*sizeOut = size;
			}
		}
	}
	return call_end(&call);
}

int cuLinkDestroy(uint64_t state)
{
	struct linking *linking = linking_of(state);
	struct input *next;

	if (!linking)
		return CU_INVALID_HANDLE;
	for (struct input *input = linking->first; input; input = next) {
		next = input->next;
		free(input->name);
		free(input);
	}
	free(linking->cubin);
	free(linking);
	return CU_SUCCESS;
}

/* Functions */

/* What is known of a function; the caller holds `known`. NULL without memory. */
static struct layout *layout_of(struct remote *remote, uint64_t function)
{
	size_t index = function & ((1U << HANDLE_INDEX_BITS) - 1), count = remote->layouts_count;
	struct layout *layout;

	if (index >= count) {
		size_t size = index < 64 ? 128 : 2 * index;
		struct layout *grown = realloc(remote->layouts, size * sizeof *grown);

		if (!grown)
			return NULL;
		memset(grown + count, 0, (size - count) * sizeof *grown);
		remote->layouts = grown;
		remote->layouts_count = size;
	}
	layout = &remote->layouts[index];
	if (layout->function != function) { /* what it was before is gone */
		free(layout->places);
		free(layout->name);
		*layout = (struct layout){.function = function};
	}
	return layout;
}

static int ask_layout(struct remote *remote, uint64_t function)
{
	struct layout *layout;
	struct place *places = NULL;
	struct call call;
	size_t count, size = 0;

	call_in_context(&call, OP_layout, 0);
	call_handle(&call, function, handle_type(function));
	call.answer_max = LAYOUT_MAX * 16;
	call_send(&call);
	if (!call.error) {
		count = (size_t)(call.in.end - call.in.at) / 16;
		places = calloc(count + 1, sizeof *places);
		for (size_t i = 0; places && i < count; i++) {
			places[i].offset = read_number(&call.in);
			places[i].size = read_number(&call.in);
			if (places[i].offset > PARAMETERS_MAX || places[i].size > PARAMETERS_MAX - places[i].offset)
				call.error = CU_UNKNOWN;
			else if (places[i].offset + places[i].size > size)
				size = places[i].offset + places[i].size;
		}
		pthread_mutex_lock(&remote->known);
		layout = places && !call.error ? layout_of(remote, function) : NULL;
		if (layout && !layout->places) {
			layout->count = count;
			layout->size = size;
			layout->places = places;
			places = NULL;
		}
		pthread_mutex_unlock(&remote->known);
		if (!layout && !call.error)
			call.error = CU_OUT_OF_MEMORY;
		free(places);
	}
	return call_end(&call);
}

/* Put a kernel's parameters where they belong in a buffer. */
static int pack(struct remote *remote, uint64_t function, void **parameters, uint8_t *buffer, size_t *size)
{
	const struct layout *layout;
	bool known = false;
	int result = CU_SUCCESS;

	for (int tries = 0; tries < 2 && !known && !result; tries++) {
		pthread_mutex_lock(&remote->known);
		layout = layout_of(remote, function);
		known = layout && layout->places;
		if (known) {
			*size = layout->size;
			for (size_t i = 0; i < layout->count; i++)
				if (parameters)
					memcpy(buffer + layout->places[i].offset, parameters[i], layout->places[i].size);
			if (layout->count && !parameters)
				result = CU_INVALID_VALUE;
		}
		pthread_mutex_unlock(&remote->known);
		if (!known && !result)
			result = ask_layout(remote, function);
	}
	return result;
}

/* The buffer that a program gives itself: CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END. */
static int unpack_extra(void **extra, const void **buffer, size_t *size)
{
	*buffer = NULL;
	*size = 0;
	for (unsigned i = 0; extra[i]; i += 2) {
		if (extra[i] == (void *)1)
			*buffer = extra[i + 1];
		else if (extra[i] == (void *)2)
			*size = *(const size_t *)extra[i + 1];
		else
			return CU_INVALID_VALUE;
	}
	return (*size && !*buffer) || *size > PARAMETERS_MAX ? CU_INVALID_VALUE : CU_SUCCESS;
}

/* CUlaunchConfig and CUlaunchAttribute */
struct launch_attribute {
	int id;
	char pad[4];
	uint8_t value[LAUNCH_ATTRIBUTE_SIZE];
};

struct launch_config {
	unsigned grid[3], block[3], shared;
	uint64_t stream;
	const struct launch_attribute *attributes;
	unsigned count;
};

/* What is wrong with a launch in itself is told at once, as CUDA does; the rest when somebody waits. */
static int check_launch(struct remote *remote, const struct launch_config *config)
{
	enum { MAX_THREADS_PER_BLOCK = 1 };
	uint64_t threads = (uint64_t)config->block[0] * config->block[1] * config->block[2];
	int most = 0, result = device_attribute(remote, MAX_THREADS_PER_BLOCK, &most);

	if (result)
		return result;
	for (unsigned i = 0; i < 3; i++)
		if (!config->grid[i] || !config->block[i] || config->block[i] > (unsigned)most)
			return CU_INVALID_VALUE;
	if (threads > (uint64_t)most || config->count > LAUNCH_ATTRIBUTES_MAX || (config->count && !config->attributes))
		return CU_INVALID_VALUE;
	return CU_SUCCESS;
}

static int launch(const struct launch_config *config, uint64_t function, void **parameters, void **extra)
{
	struct remote *remote = client_gpu_of(context_current());
	uint8_t buffer[PARAMETERS_MAX];
	const void *packed = buffer;
	size_t size = 0;
	struct call call;
	int result;

	if (client_state())
		return client_state();
	if (!remote)
		return CU_INVALID_CONTEXT;
	if (client_gpu_of(function) != remote ||
	    (handle_type(function) != HANDLE_FUNCTION && handle_type(function) != HANDLE_KERNEL))
		return CU_INVALID_HANDLE;
	result = check_launch(remote, config);
	if (!result)
		result = extra ? unpack_extra(extra, &packed, &size) : pack(remote, function, parameters, buffer, &size);
	if (result)
		return result;
	call_in_context(&call, OP_launch, CALL_ASYNC);
	call_handle(&call, function, handle_type(function));
	for (unsigned i = 0; i < 3; i++)
		call_number(&call, config->grid[i]);
	for (unsigned i = 0; i < 3; i++)
		call_number(&call, config->block[i]);
	call_number(&call, config->shared);
	call_handle(&call, config->stream, HANDLE_STREAM);
	call_number(&call, config->count);
	for (unsigned i = 0; i < config->count; i++) {
		call_number(&call, (uint64_t)config->attributes[i].id);
		call_bytes(&call, config->attributes[i].value, LAUNCH_ATTRIBUTE_SIZE);
	}
	call_payload(&call, packed, size);
	call_send(&call);
	return call_end(&call);
}

int cuLaunchKernel(uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX,
		   unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream, void **kernelParams,
		   void **extra)
{
	struct launch_config config = {
		.grid = {gridDimX, gridDimY, gridDimZ},
		.block = {blockDimX, blockDimY, blockDimZ},
		.shared = sharedMemBytes,
		.stream = hStream,
	};

	return launch(&config, f, kernelParams, extra);
}

int cuLaunchKernelEx(const void *config, uint64_t f, void **kernelParams, void **extra)
{
	return config ? launch(config, f, kernelParams, extra) : CU_INVALID_VALUE;
}

int cuLaunchCooperativeKernel(uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX,
			      unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream,
			      void **kernelParams)
{
	enum { COOPERATIVE = 2 };
	static const struct launch_attribute cooperative = {.id = COOPERATIVE, .value = {1}};
	struct launch_config config = {
		.grid = {gridDimX, gridDimY, gridDimZ},
		.block = {blockDimX, blockDimY, blockDimZ},
		.shared = sharedMemBytes,
		.stream = hStream,
		.attributes = &cooperative,
		.count = 1,
	};

	return launch(&config, f, kernelParams, NULL);
}

/* The API returns a text that stays: it is kept with the function. */
static int get_name(const char **name, uint64_t function)
{
	struct remote *remote = client_gpu_of(function);
	char text[TEXT_MAX] = "";
	struct layout *layout;
	struct call call;

	if (!name)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_name, 0, function);
	call_handle(&call, function, handle_type(function));
	call_send(&call);
	answer_text(&call, text, sizeof text);
	if (!call.error) {
		pthread_mutex_lock(&remote->known);
		layout = layout_of(remote, function);
		if (layout && !layout->name)
			layout->name = strdup(text);
		*name = layout ? layout->name : NULL;
		pthread_mutex_unlock(&remote->known);
		if (!*name)
			call.error = CU_OUT_OF_MEMORY;
	}
	return call_end(&call);
}

int cuFuncGetName(const char **name, uint64_t hfunc)
{
	return get_name(name, hfunc);
}

int cuKernelGetName(const char **name, uint64_t hfunc)
{
	return get_name(name, hfunc);
}

/* The program may say by a function how much shared memory each block size needs; that cannot be asked from afar. */
int cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, uint64_t func,
					      void *blockSizeToDynamicSMemSize, size_t dynamicSMemSize, int blockSizeLimit,
					      unsigned flags)
{
	struct call call;

	if (!minGridSize || !blockSize)
		return CU_INVALID_VALUE;
	if (blockSizeToDynamicSMemSize)
		return unsupported(__func__);
	call_in_context(&call, OP_block_size, 0);
	call_handle(&call, func, HANDLE_FUNCTION);
	call_number(&call, dynamicSMemSize);
	call_number(&call, (uint64_t)blockSizeLimit);
	call_number(&call, flags);
	call_send(&call);
	answer_bytes(&call, minGridSize, sizeof *minGridSize);
	answer_bytes(&call, blockSize, sizeof *blockSize);
	return call_end(&call);
}

int cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, uint64_t func, void *blockSizeToDynamicSMemSize,
				     size_t dynamicSMemSize, int blockSizeLimit)
{
	return cuOccupancyMaxPotentialBlockSizeWithFlags(minGridSize, blockSize, func, blockSizeToDynamicSMemSize,
							 dynamicSMemSize, blockSizeLimit, 0);
}
