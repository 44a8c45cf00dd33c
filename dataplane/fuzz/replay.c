/* The corpus, and a fixed number of mutations of it from a fixed seed: the same run every time, with any compiler. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"

enum { INPUTS_MAX = 64, INPUT_MAX = 4096 };

static struct {
	uint8_t data[INPUT_MAX];
	size_t size;
} inputs[INPUTS_MAX];
static size_t count;

static uint32_t random_number(void)
{
	static uint32_t state = 2463534242U;

	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static void load(const char *folder)
{
	DIR *directory = opendir(folder);
	const struct dirent *entry;

	if (!directory) {
		perror(folder);
		exit(1);
	}
	while ((entry = readdir(directory)) && count < INPUTS_MAX) {
		char path[4096];
		FILE *file;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
		file = fopen(path, "rb");
		if (!file) {
			perror(path);
			exit(1);
		}
		inputs[count].size = fread(inputs[count].data, 1, INPUT_MAX, file);
		count++;
		fclose(file);
	}
	closedir(directory);
}

/* One to four changes: a byte set, a piece removed, or a piece of another input put in. */
static size_t mutate(uint8_t *data, size_t size)
{
	for (uint32_t changes = 1 + random_number() % 4; changes; changes--) {
		size_t at = size ? random_number() % size : 0, length;
		const uint8_t *from;
		size_t from_size;

		switch (random_number() % 3) {
		case 0:
			if (size)
				data[at] = (uint8_t)(random_number() % 2 ? random_number() : 0);
			break;
		case 1:
			length = size - at ? random_number() % (size - at) : 0;
			memmove(data + at, data + at + length, size - at - length);
			size -= length;
			break;
		default:
			from_size = random_number() % count;
			from = inputs[from_size].data;
			from_size = inputs[from_size].size;
			length = from_size ? random_number() % from_size : 0;
			if (size + length > INPUT_MAX)
				break;
			memmove(data + at + length, data + at, size - at);
			memcpy(data + at, from + (from_size ? random_number() % (from_size - length) : 0), length);
			size += length;
		}
	}
	return size;
}

int main(int argc, char **argv)
{
	static uint8_t data[INPUT_MAX];
	long runs = argc > 2 ? strtol(argv[2], NULL, 10) : 0;

	if (argc != 3) {
		fprintf(stderr, "usage: %s CORPUS RUNS\n", argv[0]);
		return 2;
	}
	load(argv[1]);
	if (!count) {
		fprintf(stderr, "%s: no input in %s\n", argv[0], argv[1]);
		return 1;
	}
	for (size_t i = 0; i < count; i++)
		fuzz_input(inputs[i].data, inputs[i].size);
	for (long i = 0; i < runs; i++) {
		size_t pick = random_number() % count;

		memcpy(data, inputs[pick].data, inputs[pick].size);
		fuzz_input(data, mutate(data, inputs[pick].size));
	}
	printf("%zu inputs, %ld mutations\n", count, runs);
	return 0;
}
