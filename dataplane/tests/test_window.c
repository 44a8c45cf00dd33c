/* The window over a simulated link: it ends near the bandwidth-delay product, whatever that is. */
#include "window.h"

#include "check.h"

/* Pages take `latency` there and back, and leave one after another, `gap` apart. */
static uint32_t settle(int64_t latency, double gap)
{
	struct window window;
	double free_at = 0, due[4 * WINDOW_MAX];
	uint32_t sent = 0, received = 0;
	double now = 0;

	window_init(&window, 0);
	for (int i = 0; i < 400000; i++) {
		while (sent - received < window.pages) {
			free_at = free_at > now ? free_at + gap : now + gap;
			due[sent++ % (4 * WINDOW_MAX)] = free_at + (double)latency;
		}
		now = due[received++ % (4 * WINDOW_MAX)];
		window_arrived(&window, 1, (int64_t)now);
	}
	return window.pages;
}

int main(void)
{
	static const struct {
		int64_t latency;
		double gap;
	} links[] = {{50, 4}, {500, 4}, {2000, 4}, {20000, 40}, {20000, 8}, {5000, 400}};

	for (unsigned i = 0; i < sizeof links / sizeof *links; i++) {
		double product = (double)links[i].latency / links[i].gap;
		uint32_t pages = settle(links[i].latency, links[i].gap);

		printf("latency %lld us, a page each %g us: %u pages for %g\n", (long long)links[i].latency,
		       links[i].gap, pages, product);
		CHECK(pages >= product * 0.7);
		CHECK(pages <= 8 * product || pages <= 4 * WINDOW_MIN);
	}
	return 0;
}
