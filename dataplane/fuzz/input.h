/* One input of a fuzzer. Each target defines it: request.c, order.c. */
#pragma once

#include <stddef.h>
#include <stdint.h>

int fuzz_input(const uint8_t *data, size_t size);
