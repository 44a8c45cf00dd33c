"""What a program enqueues without waiting is done in OpenCL's order, though nothing waits for the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from framework.gpu_way import Way
from framework.lent_gpu import device, gpu_entry, gpu_servers

pytestmark = [
    pytest.mark.contract,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root: run as root"),
]

PROGRAM = """
import ctypes, random, sys
cl = ctypes.CDLL("libOpenCL.so.1")
P, U, Z, I = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64
for name in ("Context", "CommandQueue", "ProgramWithSource", "Kernel", "Buffer", "UserEvent"):
    getattr(cl, "clCreate" + name).restype = P
def good(code):
    if code:
        sys.exit(f"error {code}")
def made(name, *arguments):
    code = ctypes.c_int()
    it = P(getattr(cl, "clCreate" + name)(*arguments, ctypes.byref(code)))
    good(code.value)
    return it
platform, device = P(), P()
good(cl.clGetPlatformIDs(1, ctypes.byref(platform), None))
good(cl.clGetDeviceIDs(platform, I(0xFFFFFFFF), 1, ctypes.byref(device), None))
context = made("Context", None, 1, ctypes.byref(device), None, None)
queues = [made("CommandQueue", context, device, I(0)), made("CommandQueue", context, device, I(1))]
text = b"__kernel void f(__global uint *x, uint a, uint b) { size_t i = get_global_id(0); x[i] = x[i] * a + b; }"
program = made("ProgramWithSource", context, 1, ctypes.byref(ctypes.c_char_p(text)), None)
good(cl.clBuildProgram(program, 1, ctypes.byref(device), b"", None, None))
kernel = made("Kernel", program, b"f")
COUNT, WRITE, READ, FILL, MARK = 1 << 11, 0.15, 0.25, 0.3, 0.33
size, rng = Z(4 * COUNT), random.Random(int(sys.argv[1]))
buffers = [made("Buffer", context, I(1), size, None) for _ in range(3)]
model, written, reads = [[0] * COUNT for _ in buffers], [], []
def launch(queue, number, a, b, wait=None):
    event = P()
    good(cl.clSetKernelArg(kernel, U(0), Z(8), ctypes.byref(buffers[number])))
    for at, value in ((1, a), (2, b)):
        good(cl.clSetKernelArg(kernel, U(at), Z(4), ctypes.byref(U(value))))
    waits = (U(1), ctypes.byref(wait)) if wait else (U(0), None)
    waits += (ctypes.byref(event),)
    good(cl.clEnqueueNDRangeKernel(queue, kernel, U(1), None, ctypes.byref(Z(COUNT)), None, *waits))
    model[number] = [(x * a + b) & 0xFFFFFFFF for x in model[number]]
    return event
for turn in range(int(sys.argv[2])):
    number, what = rng.randrange(3), WRITE / 2 if turn < 3 else rng.random()
    number = turn if turn < 3 else number
    if what < WRITE:
        data = (U * COUNT)(*(turn * 7 + i for i in range(COUNT)))
        written.append(data)
        blocks = U(rng.random() < 0.1)
        good(cl.clEnqueueWriteBuffer(queues[0], buffers[number], blocks, Z(0), size, data, U(0), None, None))
        model[number] = list(data)
    elif what < READ:
        out, blocks = (U * COUNT)(), U(rng.random() < 0.3)
        good(cl.clEnqueueReadBuffer(queues[0], buffers[number], blocks, Z(0), size, out, U(0), None, None))
        reads.append((out, model[number]))
    elif what < FILL:
        value = ctypes.byref(U(turn))
        good(cl.clEnqueueFillBuffer(queues[0], buffers[number], value, Z(4), Z(0), size, U(0), None, None))
        model[number] = [turn] * COUNT
    elif what < MARK:
        good(cl.clEnqueueMarkerWithWaitList(queues[0], U(0), None, None))
    else:
        launch(queues[0], number, rng.randrange(1, 9), rng.randrange(100))
good(cl.clFinish(queues[0]))
wrong = sum(list(out) != expected for out, expected in reads)
gate = last = made("UserEvent", context)  # two queues, one of them without an order, behind it
for turn in range(40):
    last = launch(queues[turn % 2], 0, 3, turn, last)
good(cl.clSetUserEventStatus(gate, 0))
out = (U * COUNT)()
good(cl.clEnqueueReadBuffer(queues[1], buffers[0], U(1), Z(0), size, out, U(1), ctypes.byref(last), None))
wrong += list(out) != model[0]
gate = last = made("UserEvent", context)
for turn in range(10):
    last = launch(queues[turn % 2], 0, 3, turn, last)
good(cl.clSetUserEventStatus(gate, -5))
failed = cl.clWaitForEvents(U(1), ctypes.byref(last))
print(wrong, "wrong;", failed)
"""


async def test_calls_that_nobody_waits_for_keep_their_order(tmp_path: Path) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await device())
        way = Way(tmp_path, await servers.start(entry))
        try:
            for seed in range(3):
                assert way.run(sys.executable, "-c", PROGRAM, str(seed), "300") == "0 wrong; -14\n"
        finally:
            way.close()
        await servers.stop(entry)
