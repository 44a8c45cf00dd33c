#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static struct logs logs;

static void put(struct log *log, const char *text)
{
	log_write(log, text, strlen(text));
}

static const char *content(const char *path)
{
	static char text[8192];
	int fd = open(path, O_RDONLY);
	ssize_t count;

	CHECK(fd >= 0);
	count = read(fd, text, sizeof text - 1);
	CHECK(count >= 0);
	text[count] = '\0';
	close(fd);
	return text;
}

static void a_full_file_goes_to_1_at_the_end_of_a_line(void)
{
	struct log *log = log_open(&logs, "a.log", 10);

	put(log, "one\ntwo\nthree\n");
	CHECK_TEXT(content("a.log.1"), "one\ntwo\n");
	CHECK_TEXT(content("a.log"), "three\n");
	put(log, "4\n");
	CHECK_TEXT(content("a.log"), "three\n4\n");
	put(log, "five\n");
	CHECK_TEXT(content("a.log.1"), "three\n4\n");
	CHECK_TEXT(content("a.log"), "five\n");
	log_close(log);
}

static void a_long_line_is_cut_where_the_file_ends(void)
{
	struct log *log = log_open(&logs, "b.log", 10);

	put(log, "0123456789abcdef");
	CHECK_TEXT(content("b.log.1"), "0123456789");
	CHECK_TEXT(content("b.log"), "abcdef");
	log_close(log);
}

static void what_is_there_counts(void)
{
	struct log *log = log_open(&logs, "b.log", 10);

	put(log, "ghij\n");
	CHECK_TEXT(content("b.log.1"), "abcdef");
	CHECK_TEXT(content("b.log"), "ghij\n");
	log_close(log);
}

static void one_path_is_one_log(void)
{
	struct log *first = log_open(&logs, "c.log", 100), *second = log_open(&logs, "c.log", 200);

	CHECK(first == second && first->limit == 200);
	log_close(first);
	put(second, "x\n");
	CHECK_TEXT(content("c.log"), "x\n");
	log_close(second);
	CHECK(LIST_EMPTY(&logs));
}

static void only_regular_files(void)
{
	CHECK(!mkfifo("fifo", 0600));
	CHECK(!log_open(&logs, "fifo", 100) && (errno == ENXIO || errno == EINVAL));
	CHECK(!log_open(&logs, "/dev/null", 100) && errno == EINVAL);
	CHECK(!symlink("a.log", "link"));
	CHECK(!log_open(&logs, "link", 100) && errno == ELOOP);
	CHECK(!log_open(&logs, "missing/x", 100) && errno == ENOENT);
	CHECK(LIST_EMPTY(&logs));
}

/* RLIMIT_FSIZE stands for a full disk: writes beyond it fail. */
static void what_does_not_fit_is_dropped_counted_and_told(void)
{
	struct rlimit full = {4, RLIM_INFINITY}, room = {RLIM_INFINITY, RLIM_INFINITY};
	struct log *log = log_open(&logs, "d.log", 1000);

	signal(SIGXFSZ, SIG_IGN);
	CHECK(!setrlimit(RLIMIT_FSIZE, &full));
	put(log, "0123456789");
	put(log, "more");
	CHECK(log->dropped == 10);
	CHECK(!setrlimit(RLIMIT_FSIZE, &room));
	put(log, "again\n");
	CHECK_TEXT(content("d.log"), "0123\n[vmcoal-holder: 10 bytes lost here]\nagain\n");
	CHECK(log->dropped == 10);
	log_close(log);
}

static void a_removed_file_is_made_anew_at_rotation(void)
{
	struct log *log = log_open(&logs, "e.log", 4);

	put(log, "abc\n");
	CHECK(!unlink("e.log"));
	put(log, "def\n");
	CHECK_TEXT(content("e.log"), "def\n");
	log_close(log);
}

int main(void)
{
	char folder[] = "/tmp/test-log.XXXXXX";
	char command[64];

	CHECK(mkdtemp(folder) && !chdir(folder));
	a_full_file_goes_to_1_at_the_end_of_a_line();
	a_long_line_is_cut_where_the_file_ends();
	what_is_there_counts();
	one_path_is_one_log();
	only_regular_files();
	what_does_not_fit_is_dropped_counted_and_told();
	a_removed_file_is_made_anew_at_rotation();
	snprintf(command, sizeof command, "rm -r %s", folder);
	return system(command);
}
