/* How long things took: counts in buckets that double, from less than a microsecond to four seconds and more. */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { HISTOGRAM_BUCKETS = 24 };

/* Bucket i counts what took less than 2^i microseconds and not less than half of that; the last one the rest too.
 * Any thread may note and read. */
struct histogram {
	_Atomic uint64_t counts[HISTOGRAM_BUCKETS];
};

void histogram_note(struct histogram *histogram, int64_t us);

/* Write the counts, separated by commas and without the zeros at the end; one that nothing was noted in is empty. */
void histogram_print(const struct histogram *histogram, char *text, size_t room);
