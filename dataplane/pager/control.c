#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "keep.h"
#include "order.h"
#include "packet.h"

struct connection {
	struct source source;
	struct control *control;
};

struct call {
	struct control *control;
	struct engine *engine;
	struct order *order;
	struct packet *packet;
	struct reply *reply;
	struct refusal *why;
	struct connection *connection;
	bool later; /* the answer is sent when there is one */
};

enum { NAME_MAX_ = 80 };

static const char *kept_name(char name[NAME_MAX_], const char *id, const char *what)
{
	snprintf(name, NAME_MAX_, "pager.%.64s.%s", id, what);
	return name;
}

static int take(struct call *call, unsigned number)
{
	return take_fd(&call->packet->fds[number]);
}

/* Whether a region of that name is there, which this pager cannot read. */
static bool left_alone(struct call *call)
{
	for (unsigned i = 0; i < call->control->left_count; i++)
		if (!strcmp(call->control->left[i], call->order->id)) {
			refuse(call->why, EPROTONOSUPPORT, "region %s was left by a vmcoal-pager of another version: its records cannot be read by this one", call->order->id);
			return true;
		}
	return false;
}

static struct region *need(struct call *call)
{
	struct region *region = region_find(call->engine, call->order->id);

	if (!region && !left_alone(call))
		refuse(call->why, ENOENT, "no region %s", call->order->id);
	return region;
}

static bool do_hello(struct call *call)
{
	if (call->order->version != 1)
		return refuse(call->why, EPROTONOSUPPORT, "only version 1 is spoken here");
	reply_field(call->reply, "version=1");
	reply_field(call->reply, "pid=%d", getpid());
	return true;
}

static int new_meta(const char *id, uint64_t pages)
{
	AUTO_CLOSE int fd = memfd_create(id, MFD_CLOEXEC);

	return fd < 0 || ftruncate(fd, (off_t)meta_size(pages)) < 0 ? -1 : take_fd(&fd);
}

static bool do_add(struct call *call)
{
	const char *id = call->order->id;
	uint64_t pages = call->order->size / PAGE_SIZE;
	char name[NAME_MAX_];
	struct region *region;
	int meta;

	if (left_alone(call))
		return false;
	if (region_find(call->engine, id))
		return refuse(call->why, EEXIST, "there is a region %s", id);
	meta = new_meta(id, pages);
	if (meta < 0)
		return refuse(call->why, errno, "no room for the records of region %s", id);
	region = region_add(call->engine, id, pages, take(call, 0), meta, true);
	if (!region)
		return refuse(call->why, errno, "region %s cannot be added: its file has to have its size", id);
	/* Kept before anything depends on them. */
	if (keep_put(call->control->holder, kept_name(name, id, "meta"), region->meta_fd) &&
	    keep_put(call->control->holder, kept_name(name, id, "file"), region->file))
		return true;
	region_remove(call->engine, region);
	return refuse(call->why, EIO, "the holder does not keep the descriptors of region %s", id);
}

static bool do_store(struct call *call)
{
	struct region *region = need(call);
	struct meta_store store = {.port = (uint32_t)call->order->port};

	if (!region)
		return false;
	snprintf(store.address, sizeof store.address, "%s", call->order->address);
	snprintf(store.export, sizeof store.export, "%s", call->order->export);
	if (call->order->identity) {
		snprintf(store.identity, sizeof store.identity, "%s", call->order->identity);
		snprintf(store.psk_file, sizeof store.psk_file, "%s", call->order->psk_file);
	}
	region_store(call->engine, region, (unsigned)call->order->number, &store);
	return true;
}

static bool do_unstore(struct call *call)
{
	struct region *region = need(call);
	unsigned number = (unsigned)call->order->number;

	if (!region)
		return false;
	if (!call->order->gone && !region_spares(call->engine, region, number))
		return refuse(call->why, EBUSY, "pages of region %s are on store %u alone", region->id, number);
	region_store(call->engine, region, number, NULL);
	return true;
}

static bool do_map(struct call *call)
{
	struct region *region = NULL;
	struct stat info;
	char name[NAME_MAX_];

	if (!fstat(call->packet->fds[1], &info))
		region = region_by_file(call->engine, info.st_dev, info.st_ino);
	if (!region)
		return refuse(call->why, ENOENT, "this file is no region");
	/* Before the descriptor that is kept is replaced. */
	if (region->faults >= 0)
		return refuse(call->why, EBUSY, "region %s is mapped already", region->id);
	if (!keep_put(call->control->holder, kept_name(name, region->id, "faults"), call->packet->fds[0]))
		return refuse(call->why, EIO, "the holder does not keep the userfaultfd of region %s", region->id);
	if (!region_map(call->engine, region, take(call, 0), call->order->base, call->order->length))
		return refuse(call->why, EBUSY, "the mapping of region %s is shorter than its file", region->id);
	reply_field(call->reply, "id=%s", region->id);
	return true;
}

static bool do_discard(struct call *call)
{
	struct region *region = need(call);
	uint64_t page = call->order->offset / PAGE_SIZE, count = call->order->length / PAGE_SIZE;

	if (!region)
		return false;
	if (page + count > region->pages)
		return refuse(call->why, EINVAL, "region %s has no such pages", region->id);
	region_discard(call->engine, region, (uint32_t)page, (uint32_t)count);
	return true;
}

static bool do_unmap(struct call *call)
{
	struct region *region = need(call);
	char name[NAME_MAX_];

	if (!region)
		return false;
	region_unmap(call->engine, region);
	keep_drop(call->control->holder, kept_name(name, region->id, "faults"));
	return true;
}

static bool do_remove(struct call *call)
{
	static const char *const kept[] = {"faults", "file", "meta"};
	struct region *region = need(call);
	char name[NAME_MAX_];

	if (!region)
		return false;
	if (!region_remove(call->engine, region))
		return refuse(call->why, EBUSY, "region %s is still in use", region->id);
	for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++)
		keep_drop(call->control->holder, kept_name(name, call->order->id, kept[i]));
	return true;
}

static bool do_cache(struct call *call)
{
	uint64_t pages = call->order->size / PAGE_SIZE;

	if (pages < 64)
		return refuse(call->why, EINVAL, "the cache has to have at least 64 pages");
	engine_budget(call->engine, pages < POLICY_NONE ? (uint32_t)pages : POLICY_NONE);
	return true;
}

static bool do_loss(struct call *call)
{
	struct region *region = need(call);
	bool poison = !strcmp(call->order->policy, "poison");

	if (!region)
		return false;
	if (!poison && strcmp(call->order->policy, "stall"))
		return refuse(call->why, EINVAL, "a loss can be met with 'stall' or 'poison', not '%s'",
			      call->order->policy);
	if (poison && !poison_possible())
		return refuse(call->why, EOPNOTSUPP, "to poison lost pages needs Linux 6.6");
	region_loss(call->engine, region, poison);
	return true;
}

static bool do_compress(struct call *call)
{
	struct region *region = need(call);

	if (region)
		region_pack(call->engine, region, call->order->on);
	return region;
}

static bool do_home(struct call *call)
{
	struct region *region = need(call);

	if (region)
		region_home(call->engine, region, call->order->on);
	return region;
}

static bool do_sample(struct call *call)
{
	struct region *region = need(call);
	unsigned number = (unsigned)call->order->number;
	bool linked;

	if (!region)
		return false;
	if (!region->meta->stores[number].address[0])
		return refuse(call->why, ENOENT, "region %s has no store %u", region->id, number);
	pthread_mutex_lock(&call->engine->lock);
	linked = region->ready[number] != 0;
	if (!linked)
		refuse(call->why, EHOSTUNREACH, "store %u of region %s: %s", number, region->id,
		       region->why[number][0] ? region->why[number] : "it is not linked");
	pthread_mutex_unlock(&call->engine->lock);
	if (!linked)
		return false;
	if (!sample_begin(call->engine, region, number, (uint32_t)call->order->count))
		return refuse(call->why, EBUSY, "another sample is under way");
	call->control->sampler = call->connection;
	call->later = true;
	return true;
}

static void describe(struct reply *reply, const struct engine *engine, struct region *region)
{
	char latency[HISTOGRAM_BUCKETS * 21];

	reply_field(reply, "region=%s", region->id);
	reply_field(reply, "pages=%u", region->pages);
	reply_field(reply, "mapped=%d", region->faults >= 0);
	reply_field(reply, "home=%d", region->home);
	reply_field(reply, "away=%llu", (unsigned long long)table_away(region));
	reply_field(reply, "here=%llu", (unsigned long long)table_here(region));
	reply_field(reply, "compress=%d", region->pack);
	reply_field(reply, "policy=%s", region->poison ? "poison" : "stall");
	reply_field(reply, "lost=%llu", (unsigned long long)table_lost(region));
	reply_field(reply, "waiting=%llu", (unsigned long long)table_waiting(engine, region));
	for (unsigned store = 0; store < META_STORES; store++) {
		if (!region->meta->stores[store].address[0])
			continue;
		reply_field(reply, "store=%u", store);
		reply_field(reply, "links=%u", region->ready[store]);
		reply_field(reply, "refused=%d", region->refused[store]);
		reply_field(reply, "behind=%llu", (unsigned long long)region->meta->behind_count[store]);
		reply_field(reply, "unsettled=%llu", (unsigned long long)limbo_count(region, store));
		reply_field(reply, "bytes-in=%llu", (unsigned long long)region->meters[store].bytes_in);
		reply_field(reply, "bytes-out=%llu", (unsigned long long)region->meters[store].bytes_out);
		reply_field(reply, "plain-in=%llu", (unsigned long long)region->meters[store].plain_in);
		reply_field(reply, "plain-out=%llu", (unsigned long long)region->meters[store].plain_out);
		reply_field(reply, "rate=%llu", (unsigned long long)meter_rate(&region->meters[store]));
		histogram_print(&region->meters[store].latency, latency, sizeof latency);
		reply_field(reply, "latency=%s", latency);
		reply_field(reply, "why=%s", region->why[store]);
	}
}

static bool do_stats(struct call *call)
{
	struct engine *engine = call->engine;

	pthread_mutex_lock(&engine->lock);
	for (unsigned i = 0; i < COUNTERS; i++)
		reply_field(call->reply, "%s=%llu", counter_names[i], (unsigned long long)engine->stats[i]);
	reply_field(call->reply, "refaults=%llu", (unsigned long long)engine->policy.refaults);
	reply_field(call->reply, "budget=%u", engine->budget);
	reply_field(call->reply, "charged=%u", engine->charged);
	reply_field(call->reply, "deferred-now=%u", engine->deferred_count);
	reply_field(call->reply, "poisoned=%llu", (unsigned long long)(engine->counts[PAGE_POISONED] + engine->counts[PAGE_HEAL]));
	for (unsigned i = 0; i < HISTOGRAM; i++)
		if (engine->latency[i])
			reply_field(call->reply, "below-us-%llu=%llu", 1ULL << i, (unsigned long long)engine->latency[i]);
	for (unsigned state = 0; state < PAGE_STATES; state++)
		reply_field(call->reply, "state-%s=%llu", page_state_name(state),
			    (unsigned long long)engine->counts[state]);
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++)
		if (engine->regions[slot])
			describe(call->reply, engine, engine->regions[slot]);
	pthread_mutex_unlock(&engine->lock);
	return true;
}

static bool (*const handlers[ORDER_VERBS])(struct call *) = {
	[ORDER_HELLO] = do_hello, [ORDER_ADD] = do_add,	      [ORDER_STORE] = do_store, [ORDER_UNSTORE] = do_unstore,
	[ORDER_MAP] = do_map,	  [ORDER_DISCARD] = do_discard, [ORDER_UNMAP] = do_unmap, [ORDER_REMOVE] = do_remove,
	[ORDER_CACHE] = do_cache, [ORDER_LOSS] = do_loss,     [ORDER_HOME] = do_home,     [ORDER_SAMPLE] = do_sample,
	[ORDER_STATS] = do_stats, [ORDER_COMPRESS] = do_compress,
};

static void disconnect(struct connection *connection)
{
	struct control *control = connection->control;

	if (control->sampler == connection) {
		control->sampler = NULL;
		sample_cancel(control->engine);
	}
	control->connections--;
	loop_close_source(&connection->control->loop, &connection->source);
	free(connection);
}

static void connection_ready(struct source *source)
{
	static struct packet packet;
	static struct reply reply;
	struct connection *connection = container_of(source, struct connection, source);
	struct control *control = connection->control;
	struct order order;
	struct refusal why;
	struct call call = {control, control->engine, &order, &packet, &reply, &why, connection, false};
	int received = packet_receive(source->fd, &packet);
	bool ok;

	if (!received)
		return;
	if (received < 0) {
		disconnect(connection);
		return;
	}
	reply_begin(&reply, "ok");
	if (control->sampler == connection)
		ok = refuse(&why, EBUSY, "one order at a time");
	else if (packet.too_many_fds || packet.too_long)
		ok = refuse(&why, E2BIG, "too long, or too many descriptors");
	else
		ok = order_parse(packet.data, packet.length, packet.fd_count, &order, &why) &&
		     handlers[order.verb](&call);
	/* Handlers leave -1 in place of what they took. */
	for (size_t i = 0; i < packet.fd_count; i++)
		if (packet.fds[i] >= 0)
			close(packet.fds[i]);
	packet.fd_count = 0;
	if (call.later)
		return;
	if (ok && reply.overflow)
		ok = refuse(&why, EMSGSIZE, "the answer does not fit into a packet");
	if (!ok)
		reply_refusal(&reply, &why);
	if (!packet_send(source->fd, &reply, -1))
		disconnect(connection);
}

static void sampled_ready(struct source *source)
{
	static struct reply reply;
	struct control *control = container_of(source, struct control, sampled);
	struct connection *connection = control->sampler;
	uint32_t pages, p50, p99;

	if (!sample_ended(control->engine, &pages, &p50, &p99) || !connection)
		return;
	control->sampler = NULL;
	reply_begin(&reply, "ok");
	reply_field(&reply, "p50-us=%u", p50);
	reply_field(&reply, "p99-us=%u", p99);
	reply_field(&reply, "pages=%u", pages);
	if (!packet_send(connection->source.fd, &reply, -1))
		disconnect(connection);
}

static void listener_ready(struct source *source)
{
	struct control *control = container_of(source, struct control, listener);
	AUTO_CLOSE int fd = packet_accept(source->fd, &control->spare);
	struct connection *connection;

	if (fd < 0 || control->connections == CONNECTIONS_MAX)
		return;
	connection = calloc(1, sizeof *connection);
	if (!connection)
		return;
	connection->control = control;
	connection->source.fd = fd;
	connection->source.ready = connection_ready;
	if (loop_add(&control->loop, &connection->source) < 0) {
		free(connection);
		return;
	}
	take_fd(&fd);
	control->connections++;
}

bool control_open(struct control *control, int listener)
{
	control->spare = packet_spare();
	control->listener.fd = listener;
	control->listener.ready = listener_ready;
	control->sampled.fd = control->engine->sample.done;
	control->sampled.ready = sampled_ready;
	return !loop_open(&control->loop) && !loop_add(&control->loop, &control->listener) &&
	       !loop_add(&control->loop, &control->sampled);
}

/* Whoever touches its pages waits until a pager that can read its records takes it over. */
static void leave(struct control *control, const char *id, int reason)
{
	fprintf(stderr, "vmcoal-pager: region %s cannot be taken over: ", id);
	if (reason != EPROTONOSUPPORT) {
		fprintf(stderr, "%s\n", strerror(reason));
		return;
	}
	fprintf(stderr, "its records are not of version %d to %d; start a vmcoal-pager of the version that left them\n",
		META_VERSION_OLDEST, META_VERSION);
	if (control->left_count < REGIONS_MAX)
		snprintf(control->left[control->left_count++], sizeof *control->left, "%s", id);
}

static void take_over_one(const char *name, void *user)
{
	struct control *control = user;
	char id[REGION_ID_MAX + 1], other[NAME_MAX_];
	struct region *region;
	struct stat info;
	int file, meta, faults;
	size_t length = strlen(name);

	if (strncmp(name, "pager.", 6) || length < 12 || strcmp(name + length - 5, ".meta"))
		return;
	snprintf(id, sizeof id, "%.*s", (int)(length - 11), name + 6);
	meta = keep_get(control->holder, name);
	file = keep_get(control->holder, kept_name(other, id, "file"));
	if (file < 0 || meta < 0 || fstat(file, &info) < 0) {
		/* The end came while it was added: nobody has it mapped yet. */
		fprintf(stderr, "vmcoal-pager: region %s was left incomplete\n", id);
		keep_drop(control->holder, name);
		if (meta >= 0)
			close(meta);
		return;
	}
	region = region_add(control->engine, id, (uint64_t)info.st_size / PAGE_SIZE, file, meta, false);
	if (!region) {
		leave(control, id, errno);
		return;
	}
	faults = keep_get(control->holder, kept_name(other, id, "faults"));
	if (faults >= 0 && region->meta->length)
		region_map(control->engine, region, faults, region->meta->base, region->meta->length);
	else if (faults >= 0)
		close(faults);
	fprintf(stderr, "vmcoal-pager: region %s taken over\n", id);
}

bool control_take_over(struct control *control)
{
	return keep_names(control->holder, take_over_one, control);
}
