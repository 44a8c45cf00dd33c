/* cuGetProcAddress: which function a name means for a program that was built for a version of CUDA. */
#include <string.h>

#include "generated/api.h"
#include "symbols.h"

enum { FOUND = 0, NOT_FOUND = 1, TOO_OLD = 2, PER_THREAD_DEFAULT_STREAM = 2 };

/* Where a name's rows begin, or the end of the table. */
static size_t find(const char *name)
{
	size_t low = 0, high = symbols_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (strcmp(symbols[middle].name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, uint64_t flags, int *symbolStatus)
{
	int status = NOT_FOUND;
	void *call = NULL;

	if (!symbol || !pfn)
		return CU_INVALID_VALUE;
	for (size_t i = find(symbol); i < symbols_count && !strcmp(symbols[i].name, symbol); i++) {
		if (symbols[i].per_thread && flags != PER_THREAD_DEFAULT_STREAM)
			continue;
		if (status == NOT_FOUND)
			status = TOO_OLD;
		if (symbols[i].version <= cudaVersion) {
			status = FOUND;
			call = symbols[i].call;
		}
	}
	*pfn = call;
	if (symbolStatus)
		*symbolStatus = status;
	return call || symbolStatus ? CU_SUCCESS : CU_NOT_FOUND;
}

int cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, uint64_t flags)
{
	int result = cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, NULL);

	/* Whoever asks this way calls what it gets the same way. */
	if (!result && *pfn == (void *)cuGetProcAddress_v2)
		*pfn = (void *)cuGetProcAddress;
	return result;
}

/* Private tables of NVIDIA's own libraries: there is no description of them. */
int cuGetExportTable(const void **ppExportTable, const void *pExportTableId)
{
	(void)pExportTableId;
	if (ppExportTable)
		*ppExportTable = NULL;
	return unsupported(__func__);
}
