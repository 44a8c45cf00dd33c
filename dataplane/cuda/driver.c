#include "driver.h"

#include <dlfcn.h>
#include <stdint.h>

#include "errors.h"

static int missing(void)
{
	return CU_NOT_SUPPORTED;
}

/* ISO C has no conversion between pointers to data and to functions; POSIX does, and any arguments may be passed to a
 * function that looks at none (System V ABI: the caller takes them off the stack). */
static void *find(void *library, const char *name)
{
	void *symbol = dlsym(library, name);

	return symbol ? symbol : (void *)(uintptr_t)missing;
}

bool driver_load(struct driver *driver, const char *path, const char **why)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library) {
		*why = dlerror();
		return false;
	}
#define DRIVER_FIND(name, parameters) *(void **)&driver->name = find(library, #name);
	DRIVER_CALLS(DRIVER_FIND)
	if (driver->cuInit != (int (*)(unsigned))(uintptr_t)missing)
		return true;
	*why = "it is no CUDA driver";
	return false;
}
