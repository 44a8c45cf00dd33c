#include "request.h"

#include <errno.h>
#include <string.h>

enum key {
	KEY_ID,
	KEY_NAME,
	KEY_CWD,
	KEY_STDOUT,
	KEY_STDERR,
	KEY_CGROUP,
	KEY_VERSION,
	KEY_LOG_LIMIT,
	KEY_RESTART,
	KEY_RESTART_MAX,
	KEY_MAIN,
	KEY_SIG,
	KEY_GRACE,
	KEY_ARG,
	KEY_ENV,
	KEY_FD,
	KEY_COUNT,
};

enum kind { KIND_LABEL, KIND_PATH, KIND_NUMBER, KIND_RESTART, KIND_ARG, KIND_ENV, KIND_FD };

#define BIT(key) (1U << (key))
#define REPEATED (BIT(KEY_ARG) | BIT(KEY_ENV) | BIT(KEY_FD))
#define AT(member) offsetof(struct request, member)

static const struct {
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t min, max;
} keys[KEY_COUNT] = {
	[KEY_ID] = {"id", KIND_LABEL, AT(id), 0, 0},
	[KEY_NAME] = {"name", KIND_LABEL, AT(name), 0, 0},
	[KEY_CWD] = {"cwd", KIND_PATH, AT(cwd), 0, 0},
	[KEY_STDOUT] = {"stdout", KIND_PATH, AT(stdout_log), 0, 0},
	[KEY_STDERR] = {"stderr", KIND_PATH, AT(stderr_log), 0, 0},
	[KEY_CGROUP] = {"cgroup", KIND_PATH, AT(cgroup), 0, 0},
	[KEY_VERSION] = {"version", KIND_NUMBER, AT(version), 0, UINT32_MAX},
	[KEY_LOG_LIMIT] = {"log-limit", KIND_NUMBER, AT(log_limit), LOG_LIMIT_MIN, LOG_LIMIT_MAX},
	[KEY_RESTART] = {"restart", KIND_RESTART, AT(restart), 0, 0},
	[KEY_RESTART_MAX] = {"restart-max", KIND_NUMBER, AT(restart_max), 0, RESTART_MAX_MAX},
	[KEY_MAIN] = {"main", KIND_NUMBER, AT(main), 0, 1},
	[KEY_SIG] = {"sig", KIND_NUMBER, AT(sig), 1, 64},
	[KEY_GRACE] = {"grace-ms", KIND_NUMBER, AT(grace_ms), 0, GRACE_MS_MAX},
	[KEY_ARG] = {"arg", KIND_ARG, 0, 0, 0},
	[KEY_ENV] = {"env", KIND_ENV, 0, 0, 0},
	[KEY_FD] = {"fd", KIND_FD, 0, TARGET_MIN, TARGET_MAX},
};

#define ONLY(set) (set), (set)

static const struct {
	const char *name;
	unsigned allowed, required;
} verbs[VERB_COUNT] = {
	[VERB_HELLO] = {"hello", ONLY(BIT(KEY_VERSION))},
	[VERB_SPAWN] = {"spawn",
			BIT(KEY_ID) | BIT(KEY_ARG) | BIT(KEY_ENV) | BIT(KEY_CWD) | BIT(KEY_STDOUT) | BIT(KEY_STDERR) |
				BIT(KEY_LOG_LIMIT) | BIT(KEY_FD) | BIT(KEY_RESTART) | BIT(KEY_RESTART_MAX) |
				BIT(KEY_MAIN) | BIT(KEY_CGROUP),
			BIT(KEY_ID) | BIT(KEY_ARG)},
	[VERB_LIST] = {"list", ONLY(0)},
	[VERB_SIGNAL] = {"signal", ONLY(BIT(KEY_ID) | BIT(KEY_SIG))},
	[VERB_STOP] = {"stop", ONLY(BIT(KEY_ID) | BIT(KEY_GRACE))},
	[VERB_FORGET] = {"forget", ONLY(BIT(KEY_ID))},
	[VERB_KEEP] = {"keep", ONLY(BIT(KEY_NAME))},
	[VERB_FETCH] = {"fetch", ONLY(BIT(KEY_NAME))},
	[VERB_DROP] = {"drop", ONLY(BIT(KEY_NAME))},
	[VERB_NAMES] = {"names", ONLY(0)},
	[VERB_WATCH] = {"watch", ONLY(0)},
	[VERB_SHUTDOWN] = {"shutdown", ONLY(BIT(KEY_GRACE))},
};

bool label_valid(const char *text)
{
	size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789._-");

	return length >= 1 && length <= LABEL_MAX && !text[length];
}

/* Decimal digits only: no sign, no space, no overflow. */
static bool number(const char *text, uint64_t min, uint64_t max, uint64_t *result)
{
	uint64_t value = 0;

	if (!*text)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
			return false;
	}
	*result = value;
	return value >= min && value <= max;
}

static bool add_target(struct request *request, const char *text, struct refusal *why)
{
	uint64_t target;

	if (!number(text, TARGET_MIN, TARGET_MAX, &target))
		return refuse(why, EINVAL, "fd must be %d to %d", TARGET_MIN, TARGET_MAX);
	if (request->targetc == FDS_MAX)
		return refuse(why, E2BIG, "more than %d descriptors", FDS_MAX);
	for (unsigned i = 0; i < request->targetc; i++)
		if (request->targets[i] == (int)target)
			return refuse(why, EINVAL, "fd=%d twice", (int)target);
	request->targets[request->targetc++] = (int)target;
	return true;
}

static bool set_value(struct request *request, enum key key, char *value, struct refusal *why)
{
	char *member = (char *)request + keys[key].offset;

	switch (keys[key].kind) {
	case KIND_LABEL:
		if (!label_valid(value))
			return refuse(why, EINVAL, "%s must be 1 to %d of a-z 0-9 . _ -", keys[key].name, LABEL_MAX);
		memcpy(member, &value, sizeof value);
		return true;
	case KIND_PATH:
		if (value[0] != '/')
			return refuse(why, EINVAL, "%s must be an absolute path", keys[key].name);
		memcpy(member, &value, sizeof value);
		return true;
	case KIND_NUMBER:
		if (!number(value, keys[key].min, keys[key].max, (uint64_t *)(void *)member))
			return refuse(why, EINVAL, "%s must be a number from %llu to %llu", keys[key].name,
				      (unsigned long long)keys[key].min, (unsigned long long)keys[key].max);
		return true;
	case KIND_RESTART:
		if (strcmp(value, "never") && strcmp(value, "on-failure"))
			return refuse(why, EINVAL, "restart must be never or on-failure");
		request->restart = value[0] == 'o' ? RESTART_ON_FAILURE : RESTART_NEVER;
		return true;
	case KIND_ARG:
		if (request->argc == ARGS_MAX)
			return refuse(why, E2BIG, "more than %d arguments", ARGS_MAX);
		if (!request->argc && !*value)
			return refuse(why, EINVAL, "the program's name is empty");
		request->argv[request->argc++] = value;
		return true;
	case KIND_ENV:
		if (request->envc == ENV_MAX)
			return refuse(why, E2BIG, "more than %d environment variables", ENV_MAX);
		if (value[0] == '=' || !strchr(value, '='))
			return refuse(why, EINVAL, "env must be NAME=VALUE");
		request->envp[request->envc++] = value;
		return true;
	case KIND_FD:
		return add_target(request, value, why);
	}
	__builtin_unreachable();
}

static bool find_key(const char *name, size_t length, enum key *key)
{
	for (unsigned i = 0; i < KEY_COUNT; i++)
		if (strlen(keys[i].name) == length && !memcmp(keys[i].name, name, length)) {
			*key = i;
			return true;
		}
	return false;
}

static bool find_verb(const char *name, enum verb *verb)
{
	for (unsigned i = 0; i < VERB_COUNT; i++)
		if (!strcmp(verbs[i].name, name)) {
			*verb = i;
			return true;
		}
	return false;
}

bool request_parse(char *packet, size_t length, size_t fds, struct request *request, struct refusal *why)
{
	unsigned seen = 0, missing;
	size_t expected;
	enum key key;

	if (!length || packet[length - 1])
		return refuse(why, EINVAL, "the packet does not end in NUL");
	memset(request, 0, sizeof *request);
	request->log_limit = LOG_LIMIT_DEFAULT;
	request->restart_max = RESTART_MAX_DEFAULT;
	if (!find_verb(packet, &request->verb))
		return refuse(why, ENOSYS, "unknown verb '%.32s'", packet);

	for (char *field = packet + strlen(packet) + 1; field < packet + length; field += strlen(field) + 1) {
		char *equals = strchr(field, '=');

		if (!equals)
			return refuse(why, EINVAL, "field '%.32s' is not key=value", field);
		if (!find_key(field, (size_t)(equals - field), &key) || !(verbs[request->verb].allowed & BIT(key)))
			return refuse(why, EINVAL, "%s knows no key '%.*s'", verbs[request->verb].name,
				      equals - field > 32 ? 32 : (int)(equals - field), field);
		if (seen & BIT(key) & ~REPEATED)
			return refuse(why, EINVAL, "%s twice", keys[key].name);
		seen |= BIT(key);
		if (!set_value(request, key, equals + 1, why))
			return false;
	}

	missing = verbs[request->verb].required & ~seen;
	if (missing)
		return refuse(why, EINVAL, "%s needs %s", verbs[request->verb].name,
			      keys[__builtin_ctz(missing)].name);
	expected = request->verb == VERB_KEEP ? 1 : request->targetc;
	if (fds != expected)
		return refuse(why, EBADF, "%zu descriptors came where %zu were told", fds, expected);
	return true;
}
