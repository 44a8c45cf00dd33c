#include "meter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

static uint8_t bytes[4096];
static size_t used;

static void put(enum frame_type type, unsigned stream, const void *payload, uint32_t length)
{
	frame_header(bytes + used, type, stream, length);
	memcpy(bytes + used + FRAME_HEADER, payload, length);
	used += FRAME_HEADER + length;
}

static void put64(uint8_t *out, uint64_t number)
{
	frame_put_number(out, (uint32_t)number);
	frame_put_number(out + 4, (uint32_t)(number >> 32));
}

static void reply(uint8_t *out, uint32_t failed, uint64_t data, uint64_t began, uint64_t ended)
{
	memset(out, 0, REPLY_HEAD);
	frame_put_number(out + 24, failed);
	put64(out + 32, data);
	put64(out + 88, began);
	put64(out + 104, ended);
}

/* Whatever the pieces are in which the bytes come. */
static void count_in_pieces(size_t piece)
{
	static const uint8_t commands = 0;
	char path[] = "/tmp/test-meter-XXXXXX";
	uint8_t answers[3 * REPLY_HEAD + 10];
	struct meter meter;
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	close(fd);
	CHECK(meter_open(&meter, path));
	CHECK(meter.page->version == METER_VERSION);
	used = 0;
	put(FRAME_OPEN, 7, &commands, 1);
	put(FRAME_DATA, 7, "request", 7);
	for (size_t at = 0; at < used; at += piece)
		meter_sent(&meter, bytes + at, used - at < piece ? used - at : piece);
	CHECK(meter.page->bytes_out == 7);

	reply(answers, 0, 10, 1000000000, 1000003000); /* 3 us, and ten bytes of data behind it */
	memset(answers + REPLY_HEAD, 0xff, 10);
	reply(answers + REPLY_HEAD + 10, 1, 0, 1000001000, 1000005000); /* 4 us, of which 2 are counted as busy already */
	reply(answers + 2 * REPLY_HEAD + 10, 0, 0, 9, 8);		     /* cannot be */
	used = 0;
	put(FRAME_CREDIT, 7, "\1\0\0\0", 4);
	put(FRAME_DATA, 7, answers, 100);
	put(FRAME_DATA, 7, answers + 100, sizeof answers - 100);
	put(FRAME_CLOSE, 7, "", 0);
	for (size_t at = 0; at < used; at += piece)
		meter_came(&meter, bytes + at, used - at < piece ? used - at : piece);
	CHECK(meter.page->bytes_in == sizeof answers);
	CHECK(meter.page->calls == 3);
	CHECK(meter.page->failed == 1);
	CHECK(meter.page->latency[2] == 1);
	CHECK(meter.page->latency[3] == 1);
	CHECK(meter.page->busy_us == 5);

	meter_came(&meter, (const uint8_t *)"\xff\xff\xff\xff\xff\xff\xff\xff more", 13); /* no frame: no more is counted */
	CHECK(meter.lost);
	meter_came(&meter, bytes, used);
	CHECK(meter.page->calls == 3);
	meter_close(&meter);
	unlink(path);
}

static void cuda_request(uint8_t *out, uint32_t length, uint8_t flags)
{
	memset(out, 0, CUDA_REQUEST);
	frame_put_number(out, length);
	out[6] = flags;
}

static void cuda_answer(uint8_t *out, uint32_t length, uint32_t result, uint32_t took, uint32_t before, uint64_t at)
{
	memset(out, 0, CUDA_ANSWER);
	frame_put_number(out, length);
	frame_put_number(out + 8, result);
	frame_put_number(out + 16, took);
	frame_put_number(out + 20, before);
	put64(out + 24, at);
}

/* Of CUDA's calls most have no answer. */
static void count_cuda_in_pieces(size_t piece)
{
	static const uint8_t cuda = CUDA_SERVICE;
	char path[] = "/tmp/test-meter-XXXXXX";
	uint8_t requests[3 * CUDA_REQUEST + 100], answers[2 * CUDA_ANSWER + 50];
	struct meter meter;
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	close(fd);
	CHECK(meter_open(&meter, path));
	cuda_request(requests, 100, 0);
	memset(requests + CUDA_REQUEST, 0xff, 100);
	cuda_request(requests + CUDA_REQUEST + 100, 0, 1);
	cuda_request(requests + 2 * CUDA_REQUEST + 100, 0, 3);
	used = 0;
	put(FRAME_OPEN, 3, &cuda, 1);
	put(FRAME_DATA, 3, requests, sizeof requests);
	for (size_t at = 0; at < used; at += piece)
		meter_sent(&meter, bytes + at, used - at < piece ? used - at : piece);
	CHECK(meter.page->calls == 1);
	cuda_answer(answers, 50, 0, 3, 4, 1000000);
	memset(answers + CUDA_ANSWER, 0xff, 50);
	cuda_answer(answers + CUDA_ANSWER + 50, 0, 700, 2, 0, 9); /* of a time that cannot be */
	used = 0;
	put(FRAME_DATA, 3, answers, sizeof answers);
	for (size_t at = 0; at < used; at += piece)
		meter_came(&meter, bytes + at, used - at < piece ? used - at : piece);
	CHECK(meter.page->calls == 3 && meter.page->failed == 1);
	CHECK(meter.page->latency[2] == 2);
	CHECK(meter.page->busy_us == 7);
	meter_close(&meter);
	unlink(path);
}

int main(void)
{
	struct meter off;

	for (size_t piece = 1; piece < 200; piece += 7) {
		count_in_pieces(piece);
		count_cuda_in_pieces(piece);
	}
	CHECK(!meter_open(&off, "/nothing/here"));
	meter_sent(&off, bytes, used);
	return 0;
}
