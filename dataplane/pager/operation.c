/* What lanes have under way, and its buffers. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { BUFFERS_KEPT = 128 };

/* Of each kind, by a lane with nothing to do. */
static const unsigned buffers_left[2] = {16, 1};

/* Buffers: a page, or a run of them; each with room behind it for a tag. Freed ones are kept in a list for each size. */
static size_t buffer_bytes(uint32_t pages)
{
	return (size_t)(pages > 1 ? RUN_MAX : 1) * PAGE_SIZE + SEAL_TAG_SIZE;
}

char *buffer_get(struct lane *lane, uint32_t pages)
{
	unsigned kind = pages > 1;
	char *buffer = lane->buffers[kind].head;

	if (buffer) {
		memcpy(&lane->buffers[kind].head, buffer, sizeof(void *));
		lane->buffers[kind].count--;
		return buffer;
	}
	buffer = malloc(buffer_bytes(pages));
	if (!buffer)
		abort();
	return buffer;
}

void buffer_put(struct lane *lane, char *buffer, uint32_t pages)
{
	unsigned kind = pages > 1;

	if (!buffer)
		return;
	if (lane->buffers[kind].count == BUFFERS_KEPT) {
		free(buffer);
		return;
	}
	memcpy(buffer, &lane->buffers[kind].head, sizeof(void *));
	lane->buffers[kind].head = buffer;
	lane->buffers[kind].count++;
}

bool buffers_spare(const struct lane *lane)
{
	return lane->buffers[0].count > buffers_left[0] || lane->buffers[1].count > buffers_left[1];
}

void buffers_trim(struct lane *lane)
{
	for (unsigned kind = 0; kind < 2; kind++)
		for (char *buffer; lane->buffers[kind].count > buffers_left[kind];) {
			buffer = lane->buffers[kind].head;
			memcpy(&lane->buffers[kind].head, buffer, sizeof(void *));
			lane->buffers[kind].count--;
			free(buffer);
		}
	malloc_trim(0);
}

struct operation *operation_new(struct view *view, enum operation_kind kind, uint32_t page, uint32_t count)
{
	struct operation *operation = calloc(1, sizeof *operation + count * sizeof *operation->records);

	if (!operation)
		abort();
	operation->kind = kind;
	operation->view = view;
	operation->page = page;
	operation->count = count;
	operation->marker = RUN_MAX;
	operation->begun_us = now_us();
	view->operations++;
	return operation;
}

uint32_t operation_bytes(const struct operation *operation)
{
	return (operation->count - 1) * PAGE_SIZE + seal_length(&operation->records[operation->count - 1]);
}

void operation_free(struct lane *lane, struct operation *operation)
{
	operation->view->operations--;
	lane->engine->demands -= operation->demand && !operation->answered;
	if (operation->pull)
		home_ended(operation);
	buffer_put(lane, operation->buffer, operation->count);
	free(operation);
}
