/* Bounds of everything that a client can make the holder keep (docs/internals/holder-protocol.md). */
#pragma once

enum {
	PACKET_MAX = 64 * 1024,
	FDS_MAX = 32,
	ARGS_MAX = 1024,
	ENV_MAX = 512,
	LABEL_MAX = 64,
	TARGET_MIN = 3,
	TARGET_MAX = 255,
	CHILDREN_MAX = 256,
	KEPT_MAX = 256,
	CONNECTIONS_MAX = 32,
};

#define LOG_LIMIT_MIN 4096ULL
#define LOG_LIMIT_MAX (1ULL << 40)
#define LOG_LIMIT_DEFAULT (4ULL << 20)
#define EXITS_LIMIT (256ULL << 10)
#define GRACE_MS_MAX 3600000ULL
#define RESTART_MAX_MAX 1000ULL
#define RESTART_MAX_DEFAULT 5ULL

#define RESTART_DELAY_MS 100
#define RESTART_DELAY_MAX_MS 5000
#define RESTART_STABLE_MS 30000
#define CLOSING_GRACE_MS 5000
