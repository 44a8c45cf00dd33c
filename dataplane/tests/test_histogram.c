/* Buckets that double, and how they are written. */
#include "histogram.h"

#include "check.h"

int main(void)
{
	static struct histogram histogram, none;
	static const int64_t noted[] = {-1, 0, 1, 2, 3, 4, 1023, 1024, INT64_MAX};
	char text[HISTOGRAM_BUCKETS * 21];

	for (unsigned i = 0; i < sizeof noted / sizeof *noted; i++)
		histogram_note(&histogram, noted[i]);
	histogram_print(&histogram, text, sizeof text);
	CHECK_TEXT(text, "2,1,2,1,0,0,0,0,0,0,1,1,0,0,0,0,0,0,0,0,0,0,0,1");
	histogram_print(&none, text, sizeof text);
	CHECK_TEXT(text, "");
	histogram_note(&none, 5);
	histogram_print(&none, text, sizeof text);
	CHECK_TEXT(text, "0,0,0,1");
	return 0;
}
