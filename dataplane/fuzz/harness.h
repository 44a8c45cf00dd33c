/* One input of the request parser: the first byte says how many descriptors came along, the rest is the packet. */
#pragma once

#include <stddef.h>
#include <stdint.h>

int fuzz_request(const uint8_t *data, size_t size);
