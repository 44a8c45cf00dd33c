"""A program that computes on the first OpenCL device it finds, with nothing but Python's ctypes."""

from __future__ import annotations

_ADD = """
import ctypes, sys
cl = ctypes.CDLL("libOpenCL.so.1")
P, U, Z = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t
for name in ("Context", "CommandQueue", "ProgramWithSource", "Kernel", "Buffer"):
    getattr(cl, "clCreate" + name).restype = P
def good(code):
    if code:
        sys.exit(f"error {code}")
platform, code = P(), ctypes.c_int()
good(cl.clGetPlatformIDs(1, ctypes.byref(platform), None))
found = (P * 16)()
good(cl.clGetDeviceIDs(platform, ctypes.c_uint64(0xFFFFFFFF), 16, found, None))
device = P(found[DEVICE])
err = ctypes.byref(code)
context = P(cl.clCreateContext(None, 1, ctypes.byref(device), None, None, err)); good(code.value)
queue = P(cl.clCreateCommandQueue(context, device, ctypes.c_uint64(0), err)); good(code.value)
text = ctypes.c_char_p(b"__kernel void add(__global int *x) { x[get_global_id(0)] += 41; }")
program = P(cl.clCreateProgramWithSource(context, 1, ctypes.byref(text), None, err)); good(code.value)
good(cl.clBuildProgram(program, 1, ctypes.byref(device), b"", None, None))
kernel = P(cl.clCreateKernel(program, b"add", err)); good(code.value)
count = COUNT
data = (ctypes.c_int * count)(*range(count))
size = Z(ctypes.sizeof(data))
buffer = P(cl.clCreateBuffer(context, ctypes.c_uint64(1), size, None, err)); good(code.value)
good(cl.clEnqueueWriteBuffer(queue, buffer, U(1), Z(0), size, data, U(0), None, None))
good(cl.clSetKernelArg(kernel, U(0), Z(8), ctypes.byref(buffer)))
n = Z(count)
def once():
    good(cl.clEnqueueNDRangeKernel(queue, kernel, U(1), None, ctypes.byref(n), None, U(0), None, None))
    good(cl.clFinish(queue))
once()
good(cl.clEnqueueReadBuffer(queue, buffer, U(1), Z(0), size, data, U(0), None, None))
print("right" if all(data[i] == i + 41 for i in range(count)) else "wrong", flush=True)
while len(sys.argv) > 1:
    once()
"""


def opencl_add(count: int, device: int = 0) -> str:
    """Return a Python program that adds 41 to each of ``count`` numbers on its ``device``, counted from 0, and prints
    ``right`` or ``wrong``; it ends with ``error CODE`` where OpenCL gives one. With an argument it goes on adding until
    it is ended."""
    return _ADD.replace("COUNT", str(count)).replace("DEVICE", str(device))
