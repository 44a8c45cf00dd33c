#include "mux.h"

#include <string.h>

#include "check.h"

static struct mux mux;
static unsigned opened_last, arrived_last, gone_last, gone_count;
static bool take_streams = true;
static size_t takes; /* what a service takes at once */

static bool opened(struct mux *which, unsigned number)
{
	(void)which;
	opened_last = number;
	return take_streams;
}

static size_t give_service(struct mux *which, unsigned number, const uint8_t *data, size_t size)
{
	(void)which;
	(void)number;
	(void)data;
	return size < takes ? size : takes;
}

static void arrived(struct mux *which, unsigned number)
{
	(void)which;
	arrived_last = number;
}

static void gone(struct mux *which, unsigned number)
{
	(void)which;
	gone_last = number;
	gone_count++;
}

static const struct mux_user user = {opened, give_service, arrived, gone};

static bool give(enum frame_type type, unsigned stream, const void *payload, uint32_t length)
{
	uint8_t header[FRAME_HEADER];

	frame_header(header, type, stream, length);
	CHECK(bytes_add(&mux.in, header, sizeof header));
	CHECK(!length || bytes_add(&mux.in, payload, length));
	return mux_understand(&mux);
}

static void send_data(unsigned stream, const void *data, uint32_t count)
{
	uint8_t *room = mux_room(&mux, count);

	CHECK(room != NULL);
	memcpy(room, data, count);
	mux_sent(&mux, stream, count);
}

static struct frame answer(void)
{
	struct frame frame;
	int size = frame_parse(bytes_front(&mux.out), bytes_used(&mux.out), &frame);

	CHECK(size > 0);
	bytes_take(&mux.out, (size_t)size);
	return frame;
}

static bool greet(void)
{
	return give(FRAME_HELLO, 0, HELLO_TEXT "0123456789abcdef", (uint32_t)strlen(HELLO_TEXT) + HELLO_NONCE);
}

static void begin(void)
{
	mux_reset(&mux);
	CHECK(greet());
	CHECK(answer().type == FRAME_HELLO);
	take_streams = true;
	opened_last = arrived_last = gone_last = gone_count = 0;
}

static void a_stream_lives_until_both_have_ended_it(void)
{
	begin();
	CHECK(give(FRAME_OPEN, 7, "\1", 1));
	CHECK(opened_last == 7 && mux.streams[7].service == 1);
	CHECK(give(FRAME_DATA, 7, "call", 4));
	CHECK(arrived_last == 7 && bytes_used(&mux.streams[7].arrived) == 4);
	CHECK(mux_taken(&mux, 7, 4));
	send_data(7, "reply", 5);
	CHECK(answer().length == 5);
	CHECK(mux_end(&mux, 7));
	CHECK(answer().type == FRAME_CLOSE && mux.streams[7].open);
	CHECK(give(FRAME_DATA, 7, "late", 4)); /* it was on its way */
	CHECK(give(FRAME_CLOSE, 7, NULL, 0));
	CHECK(gone_last == 7 && !mux.streams[7].open);
	CHECK(give(FRAME_OPEN, 7, "\0", 1)); /* the number is free again */
}

static void what_is_taken_gives_credit_back(void)
{
	static uint8_t piece[FRAME_MAX];
	uint32_t sent = 0;

	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1));
	for (; sent < WINDOW; sent += sizeof piece)
		CHECK(give(FRAME_DATA, 1, piece, sizeof piece));
	CHECK(mux_taken(&mux, 1, WINDOW / 4));
	CHECK(frame_number(answer().payload) == WINDOW / 4);
	for (sent = 0; sent < WINDOW / 4; sent += sizeof piece)
		CHECK(give(FRAME_DATA, 1, piece, sizeof piece));
	CHECK(!give(FRAME_DATA, 1, piece, 1));
	CHECK_TEXT(mux.why, "it sent more than it may");
}

static void no_more_is_sent_than_the_guest_takes(void)
{
	static uint8_t piece[FRAME_MAX];
	uint32_t sent = 0, count;

	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1));
	while ((count = mux_may_send(&mux, 1))) {
		send_data(1, piece, count);
		sent += count;
		bytes_clear(&mux.out);
	}
	CHECK(sent == WINDOW);
	CHECK(give(FRAME_CREDIT, 1, "\0\1\0\0", 4));
	CHECK(mux_may_send(&mux, 1) == 256);
	CHECK(!give(FRAME_CREDIT, 1, "\0\0\40\0", 4));
	CHECK_TEXT(mux.why, "it took more than it was sent");
}

static void data_is_passed_on_before_its_frame_has_come(void)
{
	uint8_t header[FRAME_HEADER];

	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1));
	takes = 3;
	frame_header(header, FRAME_DATA, 1, 8);
	CHECK(bytes_add(&mux.in, header, sizeof header) && bytes_add(&mux.in, "abcd", 4) && mux_understand(&mux));
	CHECK(!bytes_used(&mux.in) && bytes_used(&mux.streams[1].arrived) == 1 && arrived_last == 1);
	CHECK(bytes_add(&mux.in, "efgh", 4) && mux_understand(&mux));
	CHECK(!memcmp(bytes_front(&mux.streams[1].arrived), "defgh", 5)); /* in order: nothing overtakes what waits */
	CHECK(mux_taken(&mux, 1, 5) && mux.streams[1].taken == 8);
	takes = 0;
}

static void a_guest_that_does_not_read_is_not_read(void)
{
	unsigned streams = 1;

	begin();
	take_streams = false;
	CHECK(bytes_room(&mux.out, bytes_left(&mux.out) - 100) != NULL);
	bytes_added(&mux.out, bytes_left(&mux.out) - 100);
	CHECK(give(FRAME_OPEN, streams, "\0", 1));
	CHECK(!mux.streams[1].open && bytes_used(&mux.in));
	bytes_clear(&mux.out);
	CHECK(mux_understand(&mux));
	CHECK(mux.streams[1].open && !bytes_used(&mux.in) && answer().type == FRAME_CLOSE);
}

static void a_hello_ends_what_was_there(void)
{
	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1) && give(FRAME_OPEN, 2, "\1", 1));
	CHECK(greet());
	CHECK(gone_count == 2 && !mux.streams[1].open && answer().type == FRAME_HELLO);
}

static void what_breaks_the_protocol_is_refused(void)
{
	uint8_t header[FRAME_HEADER];

	mux_reset(&mux);
	CHECK(!give(FRAME_OPEN, 1, "\0", 1)); /* no hello */
	begin();
	CHECK(!give(FRAME_OPEN, 1, "\3", 1)); /* no such service */
	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1) && !give(FRAME_OPEN, 1, "\0", 1));
	begin();
	CHECK(!give(FRAME_DATA, 3, "x", 1));
	begin();
	CHECK(give(FRAME_OPEN, 1, "\0", 1) && give(FRAME_CLOSE, 1, NULL, 0) && !give(FRAME_CLOSE, 1, NULL, 0));
	for (unsigned type = 0; type < 256; type += 5) {
		begin();
		frame_header(header, type ? type + 5 : 0, 1, 0);
		CHECK(bytes_add(&mux.in, header, sizeof header) && !mux_understand(&mux));
	}
	begin();
	frame_header(header, FRAME_DATA, 1, FRAME_MAX + 1);
	CHECK(bytes_add(&mux.in, header, sizeof header) && !mux_understand(&mux));
	begin();
	frame_header(header, FRAME_DATA, STREAMS + 1, 1);
	CHECK(bytes_add(&mux.in, header, sizeof header) && !mux_understand(&mux));
}

int main(void)
{
	mux_init(&mux, &user);
	a_stream_lives_until_both_have_ended_it();
	what_is_taken_gives_credit_back();
	no_more_is_sent_than_the_guest_takes();
	data_is_passed_on_before_its_frame_has_come();
	a_guest_that_does_not_read_is_not_read();
	a_hello_ends_what_was_there();
	what_breaks_the_protocol_is_refused();
	mux_free(&mux);
	return 0;
}
