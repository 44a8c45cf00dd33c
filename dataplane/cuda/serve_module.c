/* The lender's part of the calls about modules and what is in them. */
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "serve_calls.h"

/* Options of the JIT compiler (CUjit_option) that are plain numbers; any other is not for a guest to give. */
enum {
	JIT_INFO_LOG = 3,
	JIT_INFO_LOG_SIZE = 4,
	JIT_ERROR_LOG = 5,
	JIT_ERROR_LOG_SIZE = 6,
	JIT_MODULES_MAX = 64,
};

static bool is_plain(uint64_t option)
{
	return option <= 1 || (option >= 7 && option <= 15) || (option >= 20 && option <= 24) || (option >= 29 && option <= 33);
}

/* The options as the driver takes them: the client's, and our own buffers for what it says. */
struct options {
	unsigned count;
	int names[OPTIONS_MAX + 4];
	void *values[OPTIONS_MAX + 4];
	char info[LOG_MAX], error[LOG_MAX];
};

static void add(struct options *options, int name, void *value)
{
	options->names[options->count] = name;
	options->values[options->count++] = value;
}

static void read_options(struct options *options, struct reader *in)
{
	uint64_t count = read_number(in);

	options->count = 0;
	options->info[0] = options->error[0] = 0;
	if (count > OPTIONS_MAX)
		in->bad = true;
	for (uint64_t i = 0; i < count && !in->bad; i++) {
		uint64_t name = read_number(in), value = read_number(in);

		if (is_plain(name))
			add(options, (int)name, (void *)(uintptr_t)value);
		else
			in->wrong = CU_NOT_SUPPORTED;
	}
	add(options, JIT_INFO_LOG, options->info);
	add(options, JIT_INFO_LOG_SIZE, (void *)(uintptr_t)(LOG_MAX - 1));
	add(options, JIT_ERROR_LOG, options->error);
	add(options, JIT_ERROR_LOG_SIZE, (void *)(uintptr_t)(LOG_MAX - 1));
}

static void write_logs(struct writer *out, struct options *options)
{
	write_array(out, options->info, strnlen(options->info, LOG_MAX - 1));
	write_array(out, options->error, strnlen(options->error, LOG_MAX - 1));
}

/* A module of the client's: the driver finds its end by itself, so it is to lie within what was sent. Returns a copy of
 * its own, because the driver may want it aligned. */
static void *read_image(struct reader *in)
{
	size_t size;
	const uint8_t *image = read_array(in, BODY_MAX, &size);
	void *copy = NULL;

	if (image && image_size(image, size))
		copy = malloc(size);
	if (copy)
		memcpy(copy, image, size);
	else
		in->wrong = CU_INVALID_IMAGE;
	return copy;
}

static int load(struct session *session, struct reader *in, struct writer *out, bool library)
{
	struct options *options = malloc(sizeof *options);
	uint64_t real = 0;
	void *image;
	size_t at;
	int result;

	if (!options)
		return CU_OUT_OF_MEMORY;
	read_options(options, in);
	image = read_image(in);
	result = read_end(in);
	if (!result && !session_has_room(session))
		result = CU_OUT_OF_MEMORY;
	if (result) {
		free(options);
		free(image);
		return result;
	}
	if (library)
		result = session->driver->cuLibraryLoadData(&real, image, options->names, (void *)options->values,
							    options->count, NULL, NULL, 0);
	else
		result = session->driver->cuModuleLoadDataEx(&real, image, options->count, options->names,
							     (void *)options->values);
	at = out->used;
	if (result)
		write_number(out, 0);
	else
		result = give_handle(session, out, library ? HANDLE_LIBRARY : HANDLE_MODULE, real,
				     library ? 0 : session->context);
	if (out->used > at)
		write_logs(out, options);
	free(options);
	free(image);
	return result;
}

int serve_load(struct session *session, struct reader *in, struct writer *out)
{
	return load(session, in, out, false);
}

int serve_load_library(struct session *session, struct reader *in, struct writer *out)
{
	return load(session, in, out, true);
}

/* Linking: one message has all of it, and its answer what came out. */
static int link_all(struct session *session, struct reader *in, struct options *options, uint64_t *state)
{
	uint64_t inputs = read_number(in);
	int result = in->wrong;

	if (inputs > JIT_MODULES_MAX)
		in->bad = true;
	if (!in->bad && !result)
		result = session->driver->cuLinkCreate_v2(options->count, options->names, (void *)options->values, state);
	for (uint64_t i = 0; i < inputs && !in->bad; i++) {
		int type = (int)read_number(in);
		const char *name = read_text(in);
		size_t size;
		const uint8_t *data = read_array(in, BODY_MAX, &size);

		if (!in->bad && !result)
			result = session->driver->cuLinkAddData_v2(*state, type, (void *)(uintptr_t)data, size, name, 0, NULL,
								   NULL);
	}
	return in->bad || in->at != in->end ? MALFORMED : result;
}

int serve_link(struct session *session, struct reader *in, struct writer *out)
{
	struct options *options = malloc(sizeof *options);
	uint64_t state = 0;
	void *cubin = NULL;
	size_t size = 0;
	int result;

	if (!options)
		return CU_OUT_OF_MEMORY;
	read_options(options, in);
	result = link_all(session, in, options, &state);
	if (!result)
		result = session->driver->cuLinkComplete(state, (void *)&cubin, &size);
	if (!result && size > BODY_MAX - 2 * LOG_MAX)
		result = CU_OUT_OF_MEMORY;
	if (result != MALFORMED) {
		write_array(out, cubin, result ? 0 : size);
		write_logs(out, options);
	}
	if (state)
		session->driver->cuLinkDestroy(state);
	free(options);
	return result;
}

/* Functions */

static bool is_kernel(const struct session *session, uint64_t handle)
{
	(void)session;
	return handle_type(handle) == HANDLE_KERNEL;
}

int serve_name(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t handle = read_number(in), function = real_handle(session, in, handle, HANDLE_FUNCTION);
	const char *name = NULL;
	int result = read_end(in);

	if (result)
		return result;
	result = is_kernel(session, handle) ? session->driver->cuKernelGetName(&name, function)
					    : session->driver->cuFuncGetName(&name, function);
	if (!result && !name)
		return CU_UNKNOWN;
	if (!result)
		write_text(out, name, TEXT_MAX);
	return result;
}

/* Where each parameter of a function lies in the buffer of a launch. */
int serve_layout(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t handle = read_number(in), function = real_handle(session, in, handle, HANDLE_FUNCTION);
	int result = read_end(in);
	size_t offset, size;

	if (result)
		return result;
	for (size_t i = 0; i < LAYOUT_MAX; i++) {
		offset = size = 0;
		result = is_kernel(session, handle) ? session->driver->cuKernelGetParamInfo(function, i, &offset, &size)
						    : session->driver->cuFuncGetParamInfo(function, i, &offset, &size);
		if (result)
			break;
		write_number(out, offset);
		write_number(out, size);
	}
	return result == CU_INVALID_VALUE ? CU_SUCCESS : result; /* that was one too many */
}

int serve_block_size(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t function = real_handle(session, in, read_number(in), HANDLE_FUNCTION);
	size_t dynamic = (size_t)read_number(in);
	int limit = (int)read_number(in), grid = 0, block = 0, result;
	unsigned flags = (unsigned)read_number(in);

	result = read_end(in);
	if (!result)
		result = session->driver->cuOccupancyMaxPotentialBlockSizeWithFlags(&grid, &block, function, NULL, dynamic,
										    limit, flags);
	if (result)
		return result;
	write_bytes(out, &grid, sizeof grid);
	write_bytes(out, &block, sizeof block);
	return CU_SUCCESS;
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
	struct launch_attribute *attributes;
	unsigned count;
};

/* Attributes without pointers and handles in them (CUlaunchAttributeID). */
static bool may_give(uint64_t attribute)
{
	static const uint8_t good[] = {2, 3, 4, 5, 6, 8, 9, 10, 11, 14};

	return attribute < 16 && memchr(good, (int)attribute, sizeof good);
}

int serve_launch(struct session *session, struct reader *in, struct writer *out)
{
	static struct launch_attribute attributes[LAUNCH_ATTRIBUTES_MAX];
	uint64_t function = real_handle(session, in, read_number(in), HANDLE_FUNCTION);
	struct launch_config config = {.attributes = attributes};
	const uint8_t *parameters, *value;
	size_t size;
	uint64_t count;
	int result;

	(void)out;
	for (unsigned i = 0; i < 3; i++)
		config.grid[i] = (unsigned)read_number(in);
	for (unsigned i = 0; i < 3; i++)
		config.block[i] = (unsigned)read_number(in);
	config.shared = (unsigned)read_number(in);
	config.stream = real_handle(session, in, read_number(in), HANDLE_STREAM);
	count = read_number(in);
	if (count > LAUNCH_ATTRIBUTES_MAX)
		in->bad = true;
	for (uint64_t i = 0; i < count && !in->bad; i++) {
		uint64_t id = read_number(in);

		value = read_raw(in, LAUNCH_ATTRIBUTE_SIZE);
		if (!may_give(id))
			in->wrong = CU_NOT_SUPPORTED;
		attributes[i].id = (int)id;
		if (value)
			memcpy(attributes[i].value, value, LAUNCH_ATTRIBUTE_SIZE);
		config.count++;
	}
	parameters = read_array(in, PARAMETERS_MAX, &size);
	result = read_end(in);
	if (result)
		return result;
	/* CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE and _END */
	void *extra[] = {(void *)1, (void *)(uintptr_t)parameters, (void *)2, &size, NULL};

	if (config.count)
		return session->driver->cuLaunchKernelEx(&config, function, NULL, size ? extra : NULL);
	return session->driver->cuLaunchKernel(function, config.grid[0], config.grid[1], config.grid[2], config.block[0],
					       config.block[1], config.block[2], config.shared, config.stream, NULL,
					       size ? extra : NULL);
}
