#include "histogram.h"

#include <stdio.h>

void histogram_note(struct histogram *histogram, int64_t us)
{
	unsigned bucket = us <= 0 ? 0 : 64 - (unsigned)__builtin_clzll((uint64_t)us);

	bucket = bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
	atomic_fetch_add_explicit(&histogram->counts[bucket], 1, memory_order_relaxed);
}

void histogram_print(const struct histogram *histogram, char *text, size_t room)
{
	uint64_t counts[HISTOGRAM_BUCKETS];
	unsigned used = 0;
	size_t at = 0;

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		counts[i] = atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
		used = counts[i] ? i + 1 : used;
	}
	*text = 0;
	for (unsigned i = 0; i < used && at < room; i++)
		at += (size_t)snprintf(text + at, room - at, i ? ",%llu" : "%llu", (unsigned long long)counts[i]);
}
