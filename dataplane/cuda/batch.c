#include "batch.h"

#include <string.h>

void batch_init(struct batch *batch)
{
	memset(batch, 0, sizeof *batch);
	pthread_cond_init(&batch->filled, NULL);
}

bool batch_add(struct batch *batch, const struct iovec *pieces, unsigned count)
{
	size_t size = 0;

	for (unsigned i = 0; i < count; i++)
		size += pieces[i].iov_len;
	if (size > sizeof batch->data - batch->used)
		return false;
	for (unsigned i = 0; i < count; i++) {
		if (pieces[i].iov_len)
			memcpy(batch->data + batch->used, pieces[i].iov_base, pieces[i].iov_len);
		batch->used += pieces[i].iov_len;
	}
	return true;
}
