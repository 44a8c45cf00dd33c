#include "meter.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Where ReplyMsg_t has what is counted; its times are nanoseconds of the lender's clock. */
enum { FAILED = 24, DATA_SIZE = 32, READ_AT = 88, WRITTEN_AT = 104 };

/* Where CUDA's messages have it, behind the length of their bodies. */
enum { CUDA_FLAGS = 6, CUDA_WAITED_FOR = 1, CUDA_RESULT = 8, CUDA_LATE = 12, CUDA_TOOK = 16, CUDA_BEFORE = 20, CUDA_AT = 24 };

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

static void note_busy(struct meter *meter, uint64_t began, uint64_t ended)
{
	if (meter->busy_until > began && meter->busy_until - began <= longest_ns)
		began = meter->busy_until;
	if (ended > began) {
		add(&meter->page->busy_us, (ended - began) / 1000);
		meter->busy_until = ended;
	}
}

static void note_latency(struct meter *meter, uint64_t us)
{
	unsigned bucket = 0;

	while (bucket < METER_BUCKETS - 1 && us >> bucket)
		bucket++;
	add(&meter->page->latency[bucket], 1);
}

static void note_call(struct meter *meter, bool failed)
{
	add(&meter->page->calls, 1);
	if (failed)
		add(&meter->page->failed, 1);
}

/* The lender is not trusted: times that cannot be are left out. */
static uint64_t read_reply(struct meter *meter, const uint8_t *reply)
{
	uint64_t began = number_at(reply + READ_AT), ended = number_at(reply + WRITTEN_AT);

	note_call(meter, frame_number(reply + FAILED));
	if (began && ended >= began && ended - began <= longest_ns) {
		note_latency(meter, (ended - began) / 1000);
		note_busy(meter, began, ended);
	}
	return number_at(reply + DATA_SIZE);
}

static uint64_t read_cuda_answer(struct meter *meter, const uint8_t *answer)
{
	uint64_t took = frame_number(answer + CUDA_TOOK), ended = number_at(answer + CUDA_AT);
	uint64_t busy = (took + frame_number(answer + CUDA_BEFORE)) * 1000;

	note_call(meter, frame_number(answer + CUDA_RESULT) || frame_number(answer + CUDA_LATE));
	note_latency(meter, took);
	if (ended >= busy && busy <= longest_ns)
		note_busy(meter, ended - busy, ended);
	return frame_number(answer);
}

static uint64_t read_cuda_request(struct meter *meter, const uint8_t *request)
{
	if (!(request[CUDA_FLAGS] & CUDA_WAITED_FOR))
		note_call(meter, false);
	return frame_number(request);
}

static void read_messages(struct meter *meter, struct meter_messages *messages, size_t head,
			  uint64_t (*read)(struct meter *, const uint8_t *), const uint8_t *data, size_t size)
{
	while (size) {
		size_t take = messages->skip < size ? (size_t)messages->skip : size;

		if (!take) {
			take = head - messages->have < size ? head - messages->have : size;
			memcpy(messages->head + messages->have, data, take);
			messages->have += take;
			if (messages->have == head) {
				messages->have = 0;
				messages->skip = read(meter, messages->head);
			}
		} else {
			messages->skip -= take;
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
	if (stream->service != CUDA_SERVICE && side == &meter->in)
		read_messages(meter, &stream->in, REPLY_HEAD, read_reply, data, size);
	else if (stream->service == CUDA_SERVICE && side == &meter->in)
		read_messages(meter, &stream->in, CUDA_ANSWER, read_cuda_answer, data, size);
	else if (stream->service == CUDA_SERVICE)
		read_messages(meter, &stream->out, CUDA_REQUEST, read_cuda_request, data, size);
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
