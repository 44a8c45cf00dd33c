#include "meter.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Where ReplyMsg_t has what is counted; its times are nanoseconds of the lender's clock. */
enum { FAILED = 24, DATA_SIZE = 32, READ_AT = 88, WRITTEN_AT = 104 };

static const uint64_t longest_ns = 24ull * 3600 * 1000000000;

static uint64_t number_at(const uint8_t *data)
{
	return frame_number(data) | (uint64_t)frame_number(data + 4) << 32;
}

static void add(_Atomic uint64_t *counter, uint64_t amount)
{
	atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

bool meter_open(struct meter *meter, const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	void *page = MAP_FAILED;

	*meter = (struct meter){.page = NULL};
	if (fd < 0)
		return false;
	if (!ftruncate(fd, sizeof *meter->page))
		page = mmap(NULL, sizeof *meter->page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		return false;
	meter->page = page;
	meter->page->version = METER_VERSION;
	return true;
}

void meter_close(struct meter *meter)
{
	if (meter->page)
		munmap(meter->page, sizeof *meter->page);
	meter->page = NULL;
}

/* The lender is not trusted: times that cannot be are left out. */
static void note_call(struct meter *meter, const uint8_t *reply)
{
	uint64_t began = number_at(reply + READ_AT), ended = number_at(reply + WRITTEN_AT), us;
	unsigned bucket = 0;

	add(&meter->page->calls, 1);
	if (frame_number(reply + FAILED))
		add(&meter->page->failed, 1);
	if (!began || ended < began || ended - began > longest_ns)
		return;
	us = (ended - began) / 1000;
	while (bucket < METER_BUCKETS - 1 && us >> bucket)
		bucket++;
	add(&meter->page->latency[bucket], 1);
	if (meter->busy_until > began && meter->busy_until - began <= longest_ns)
		began = meter->busy_until;
	if (ended > began) {
		add(&meter->page->busy_us, (ended - began) / 1000);
		meter->busy_until = ended;
	}
}

static void read_replies(struct meter *meter, struct meter_stream *stream, const uint8_t *data, size_t size)
{
	while (size) {
		size_t take = stream->skip < size ? (size_t)stream->skip : size;

		if (!take) {
			take = REPLY_HEAD - stream->have < size ? REPLY_HEAD - stream->have : size;
			memcpy(stream->head + stream->have, data, take);
			stream->have += take;
			if (stream->have == REPLY_HEAD) {
				stream->have = 0;
				stream->skip = number_at(stream->head + DATA_SIZE);
				note_call(meter, stream->head);
			}
		} else {
			stream->skip -= take;
		}
		data += take;
		size -= take;
	}
}

static void payload(struct meter *meter, struct meter_side *side, const uint8_t *data, size_t size)
{
	struct meter_stream *stream = &meter->streams[side->head[2]];

	if (side->head[0] == FRAME_OPEN && side == &meter->out)
		*stream = (struct meter_stream){.service = data[0]};
	if (side->head[0] != FRAME_DATA)
		return;
	add(side == &meter->out ? &meter->page->bytes_out : &meter->page->bytes_in, size);
	if (side == &meter->in && stream->service < CALL_SERVICES)
		read_replies(meter, stream, data, size);
}

static bool good_head(const uint8_t *head)
{
	return head[0] >= FRAME_HELLO && head[0] <= FRAME_CLOSE && !head[3] && head[2] <= STREAMS &&
	       frame_number(head + 4) <= FRAME_MAX;
}

static void read_frames(struct meter *meter, struct meter_side *side, const uint8_t *data, size_t size)
{
	while (meter->page && size && !meter->lost) {
		size_t take = side->left < size ? side->left : size;

		if (!take) {
			take = FRAME_HEADER - side->have < size ? FRAME_HEADER - side->have : size;
			memcpy(side->head + side->have, data, take);
			side->have += take;
			if (side->have == FRAME_HEADER) {
				side->have = 0;
				side->left = frame_number(side->head + 4);
				meter->lost = !good_head(side->head);
			}
		} else {
			payload(meter, side, data, take);
			side->left -= (uint32_t)take;
		}
		data += take;
		size -= take;
	}
}

void meter_sent(struct meter *meter, const uint8_t *data, size_t size)
{
	read_frames(meter, &meter->out, data, size);
}

void meter_came(struct meter *meter, const uint8_t *data, size_t size)
{
	read_frames(meter, &meter->in, data, size);
}
