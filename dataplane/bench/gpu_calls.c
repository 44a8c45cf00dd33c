/* An OpenCL program that is told what to do by lines, for tools/bench-gpu.
 *
 *   launch COUNT in|out   launch an almost empty kernel COUNT times in a queue that is in order or not, then finish it
 *   h2d BYTES             write a buffer, blocking
 *   d2h BYTES             read it
 *
 * Prints the device's name first, and for each line the seconds that it took.
 */
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#include <CL/cl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LINE = 128, NAME = 256 };

static const char source[] = "__kernel void one(__global int *x) { x[get_global_id(0)] += 1; }";

static cl_context context;
static cl_command_queue queues[2]; /* in order, out of order */
static cl_kernel kernel;

static void good(cl_int code, const char *what)
{
	if (code == CL_SUCCESS)
		return;
	fprintf(stderr, "gpu-calls: %s: error %d\n", what, code);
	exit(1);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static cl_mem buffer_of(size_t size)
{
	static cl_mem buffer;
	static size_t had;
	cl_int code;

	if (buffer && had != size) {
		clReleaseMemObject(buffer);
		buffer = NULL;
	}
	if (!buffer) {
		buffer = clCreateBuffer(context, CL_MEM_READ_WRITE, size, NULL, &code);
		good(code, "clCreateBuffer");
		had = size;
	}
	return buffer;
}

static void launch(int count, cl_command_queue queue)
{
	size_t items = 1;

	for (int i = 0; i < count; i++)
		good(clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &items, NULL, 0, NULL, NULL), "clEnqueueNDRangeKernel");
	good(clFinish(queue), "clFinish");
}

static void set_up(void)
{
	const char *text = source;
	cl_platform_id platform;
	cl_device_id device;
	cl_program program;
	cl_mem numbers;
	char name[NAME];
	cl_int code;
	int zero[16] = {0};

	good(clGetPlatformIDs(1, &platform, NULL), "clGetPlatformIDs");
	good(clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL), "clGetDeviceIDs");
	good(clGetDeviceInfo(device, CL_DEVICE_NAME, sizeof name, name, NULL), "clGetDeviceInfo");
	context = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
	good(code, "clCreateContext");
	for (int i = 0; i < 2; i++) {
		queues[i] = clCreateCommandQueue(context, device, i ? CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE : 0, &code);
		good(code, "clCreateCommandQueue");
	}
	program = clCreateProgramWithSource(context, 1, &text, NULL, &code);
	good(code, "clCreateProgramWithSource");
	good(clBuildProgram(program, 1, &device, "", NULL, NULL), "clBuildProgram");
	kernel = clCreateKernel(program, "one", &code);
	good(code, "clCreateKernel");
	numbers = clCreateBuffer(context, CL_MEM_READ_WRITE, sizeof zero, NULL, &code);
	good(code, "clCreateBuffer");
	good(clEnqueueWriteBuffer(queues[0], numbers, CL_TRUE, 0, sizeof zero, zero, 0, NULL, NULL), "clEnqueueWriteBuffer");
	good(clSetKernelArg(kernel, 0, sizeof numbers, &numbers), "clSetKernelArg");
	for (int i = 0; i < 2; i++)
		launch(10, queues[i]);
	printf("%s\n", name);
	fflush(stdout);
}

int main(void)
{
	char line[LINE], what[16], order[8];
	unsigned char *bytes = NULL;
	size_t had = 0;

	set_up();
	while (fgets(line, sizeof line, stdin)) {
		unsigned long amount = 0;
		double began;

		order[0] = 0;
		if (sscanf(line, "%15s %lu %7s", what, &amount, order) < 2)
			return 2;
		if (!strcmp(what, "launch")) {
			began = now();
			launch((int)amount, queues[!strcmp(order, "out")]);
		} else {
			cl_mem buffer = buffer_of(amount);

			if (had < amount) {
				free(bytes);
				bytes = malloc(amount);
				if (!bytes)
					return 1;
				memset(bytes, 0x5a, amount); /* touched, as a program's data is */
				had = amount;
			}
			began = now();
			if (!strcmp(what, "h2d"))
				good(clEnqueueWriteBuffer(queues[0], buffer, CL_TRUE, 0, amount, bytes, 0, NULL, NULL), "write");
			else
				good(clEnqueueReadBuffer(queues[0], buffer, CL_TRUE, 0, amount, bytes, 0, NULL, NULL), "read");
		}
		printf("%.9f\n", now() - began);
		fflush(stdout);
	}
	return 0;
}
