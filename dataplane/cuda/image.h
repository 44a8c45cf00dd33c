/* How long a module is that a program hands over as a bare pointer: PTX text, a cubin (ELF) or a fat binary. */
#pragma once

#include <stddef.h>

/* Returns its bytes, a text's NUL with them, or 0 if it is none of these or would not end within `limit` bytes. */
size_t image_size(const void *image, size_t limit);

/* What cuda_runtime's compiler puts around a fat binary holds a pointer to it; returns that, or `image` itself. */
const void *image_unwrap(const void *image);
