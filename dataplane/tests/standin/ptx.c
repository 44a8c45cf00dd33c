#include "ptx.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPERANDS = 5, WORDS = 8, REGISTERS_MAX = 4096, LABELS_MAX = 512 };

enum kind { NOTHING, REGISTER, NUMBER, SPECIAL, PARAMETER, MEMORY, LABEL };

struct operand {
	enum kind kind;
	unsigned index; /* of a register, a special one, or the step after a label */
	uint64_t number; /* its value, or an offset */
};

enum op {
	NOP, MOV, LD, ST, ADD, SUB, MUL, MAD, DIV, REM, NEG, ABS, MIN, MAX, AND, OR, XOR, NOT, SHL, SHR, SETP, SELP, CVT, BRA, RET, TRAP,
};

struct type {
	char family; /* u s f b p */
	unsigned bits;
};

struct ptx_step {
	enum op op;
	bool wide, high, parameter_space;
	struct type type, from;
	char compare[4];
	int guard; /* a register, -1: none */
	bool guard_not;
	struct operand operands[OPERANDS];
	unsigned count;
};

/* Reading */

struct parser {
	struct ptx_module *module;
	struct ptx_kernel *kernel;
	char (*names)[64];
	unsigned names_count;
	struct {
		char name[128];
		unsigned step;
	} labels[LABELS_MAX];
	unsigned labels_count;
	char (*wanted)[128]; /* the label that each step jumps to */
};

static void refuse(struct parser *parser, const char *what, const char *text)
{
	if (!parser->module->why[0])
		snprintf(parser->module->why, sizeof parser->module->why, "%s: %.100s", what, text);
}

static char *without_comments(const char *text)
{
	char *copy = malloc(strlen(text) + 1), *to = copy;

	while (*text) {
		if (text[0] == '/' && text[1] == '/')
			text += strcspn(text, "\n");
		else if (text[0] == '/' && text[1] == '*') {
			const char *end = strstr(text + 2, "*/");

			text = end ? end + 2 : text + strlen(text);
		} else
			*to++ = *text++;
	}
	*to = 0;
	return copy;
}

static char *trim(char *text)
{
	char *end;

	while (isspace((unsigned char)*text))
		text++;
	end = text + strlen(text);
	while (end > text && isspace((unsigned char)end[-1]))
		*--end = 0;
	return text;
}

static bool type_of(const char *word, struct type *type)
{
	static const struct {
		const char *name;
		struct type type;
	} types[] = {
		{"u8", {'u', 8}},   {"u16", {'u', 16}}, {"u32", {'u', 32}}, {"u64", {'u', 64}}, {"s8", {'s', 8}},
		{"s16", {'s', 16}}, {"s32", {'s', 32}}, {"s64", {'s', 64}}, {"b8", {'b', 8}},   {"b16", {'b', 16}},
		{"b32", {'b', 32}}, {"b64", {'b', 64}}, {"f32", {'f', 32}}, {"f64", {'f', 64}}, {"pred", {'p', 8}},
	};

	for (size_t i = 0; i < sizeof types / sizeof *types; i++)
		if (!strcmp(types[i].name, word)) {
			*type = types[i].type;
			return true;
		}
	return false;
}

static unsigned register_of(struct parser *parser, const char *name)
{
	for (unsigned i = 0; i < parser->names_count; i++)
		if (!strcmp(parser->names[i], name))
			return i;
	if (parser->names_count == REGISTERS_MAX) {
		refuse(parser, "too many registers", name);
		return 0;
	}
	snprintf(parser->names[parser->names_count], 64, "%.63s", name);
	return parser->names_count++;
}

static const char *const specials[] = {
	"%tid.x",    "%tid.y",	"%tid.z",  "%ntid.x",  "%ntid.y",  "%ntid.z",
	"%ctaid.x",  "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",
};

static struct operand operand_of(struct parser *parser, char *text)
{
	struct operand operand = {.kind = NUMBER};
	char *end;

	for (unsigned i = 0; i < sizeof specials / sizeof *specials; i++)
		if (!strcmp(specials[i], text))
			return (struct operand){.kind = SPECIAL, .index = i};
	if (*text == '%')
		return (struct operand){.kind = REGISTER, .index = register_of(parser, text)};
	if (*text == '[') {
		char *plus;

		text[strcspn(text, "]")] = 0;
		text = trim(text + 1);
		plus = strchr(text, '+');
		if (plus) {
			*plus = 0;
			operand.number = (uint64_t)strtoll(plus + 1, NULL, 0);
			text = trim(text);
		}
		if (*text == '%') {
			operand.kind = MEMORY;
			operand.index = register_of(parser, text);
			return operand;
		}
		for (unsigned i = 0; i < parser->kernel->parameters; i++)
			if (!strcmp(parser->kernel->parameter[i].name, text)) {
				operand.kind = PARAMETER;
				operand.number += parser->kernel->parameter[i].offset;
				return operand;
			}
		for (unsigned i = 0; i < parser->module->variables_count; i++)
			if (!strcmp(parser->module->variables[i].name, text)) {
				operand.number += (uintptr_t)parser->module->variables[i].memory;
				return operand;
			}
		refuse(parser, "no such memory", text);
		return operand;
	}
	if (text[0] == '0' && (text[1] == 'f' || text[1] == 'd')) {
		operand.number = strtoull(text + 2, NULL, 16);
		return operand;
	}
	if (isdigit((unsigned char)*text) || *text == '-') {
		operand.number = *text == '-' ? (uint64_t)strtoll(text, &end, 0) : strtoull(text, &end, 0);
		return operand;
	}
	for (unsigned i = 0; i < parser->module->variables_count; i++)
		if (!strcmp(parser->module->variables[i].name, text)) {
			operand.number = (uintptr_t)parser->module->variables[i].memory;
			return operand;
		}
	snprintf(parser->wanted[parser->kernel->count], 128, "%.127s", text);
	operand.kind = LABEL;
	return operand;
}

static const struct {
	const char *name;
	enum op op;
} ops[] = {
	{"mov", MOV}, {"ld", LD},   {"st", ST},	  {"cvta", MOV}, {"add", ADD}, {"sub", SUB}, {"mul", MUL},
	{"mad", MAD}, {"fma", MAD}, {"div", DIV}, {"rem", REM},	 {"neg", NEG}, {"abs", ABS}, {"min", MIN},
	{"max", MAX}, {"and", AND}, {"or", OR},	  {"xor", XOR},	 {"not", NOT}, {"shl", SHL}, {"shr", SHR},
	{"setp", SETP}, {"selp", SELP}, {"cvt", CVT}, {"bra", BRA}, {"ret", RET}, {"exit", RET}, {"trap", TRAP},
};

static void read_opcode(struct parser *parser, struct ptx_step *step, char *word)
{
	char *save, *part = strtok_r(word, ".", &save);
	bool known = false, typed = false;

	for (size_t i = 0; part && i < sizeof ops / sizeof *ops; i++)
		if (!strcmp(ops[i].name, part)) {
			step->op = ops[i].op;
			known = true;
		}
	if (!known)
		refuse(parser, "unknown instruction", part ? part : "");
	while ((part = strtok_r(NULL, ".", &save))) {
		struct type type;

		if (type_of(part, &type)) {
			if (typed)
				step->from = type;
			else
				step->type = type;
			typed = true;
		} else if (!strcmp(part, "wide"))
			step->wide = true;
		else if (!strcmp(part, "hi"))
			step->high = true;
		else if (!strcmp(part, "param"))
			step->parameter_space = true;
		else if (!strcmp(part, "shared") || !strcmp(part, "local") || part[0] == 'v')
			refuse(parser, "not done here", part);
		else if (step->op == SETP && strlen(part) < sizeof step->compare)
			snprintf(step->compare, sizeof step->compare, "%.3s", part);
	}
}

static void read_step(struct parser *parser, char *text)
{
	struct ptx_kernel *kernel = parser->kernel;
	struct ptx_step *step;
	char *word, *save, *each;

	text = trim(text);
	for (char *colon; (colon = strchr(text, ':')) && !strpbrk(text, " \t\n") && colon[1] != ':';)
		text = colon + 1;
	if (!*text || *text == '.')
		return;
	kernel->steps = realloc(kernel->steps, (kernel->count + 1) * sizeof *kernel->steps);
	parser->wanted = realloc(parser->wanted, (kernel->count + 1) * sizeof *parser->wanted);
	parser->wanted[kernel->count][0] = 0;
	step = &kernel->steps[kernel->count];
	memset(step, 0, sizeof *step);
	step->guard = -1;
	if (*text == '@') {
		step->guard_not = text[1] == '!';
		word = strtok_r(text + 1 + step->guard_not, " \t\n", &save);
		step->guard = (int)register_of(parser, word);
		text = trim(save);
	}
	word = strtok_r(text, " \t\n", &save);
	text = save;
	read_opcode(parser, step, word);
	for (each = strtok_r(text, ",", &save); each && step->count < OPERANDS; each = strtok_r(NULL, ",", &save))
		step->operands[step->count++] = operand_of(parser, trim(each));
	kernel->count++;
}

static void read_body(struct parser *parser, char *body)
{
	struct ptx_kernel *kernel = parser->kernel;

	for (char *at = body; *at;) {
		size_t length = strcspn(at, ";:{}");
		char end = at[length];

		at[length] = 0;
		if (end == ':' && parser->labels_count < LABELS_MAX) {
			snprintf(parser->labels[parser->labels_count].name, 128, "%.127s", trim(at));
			parser->labels[parser->labels_count++].step = kernel->count;
		} else if (end == ';') {
			read_step(parser, at);
		}
		if (!end)
			break;
		at += length + 1;
	}
	for (unsigned i = 0; i < kernel->count; i++) {
		struct operand *operand = &kernel->steps[i].operands[0];

		if (!parser->wanted[i][0])
			continue;
		for (unsigned k = 0; k < parser->labels_count; k++)
			if (!strcmp(parser->labels[k].name, parser->wanted[i])) {
				operand->index = parser->labels[k].step;
				parser->wanted[i][0] = 0;
				break;
			}
		if (parser->wanted[i][0])
			refuse(parser, "no such label", parser->wanted[i]);
	}
}

/* One of ".param .u64 name" and ".param .align 8 .b8 name[16]", also with .ptr */
static void read_parameter(struct parser *parser, char *text)
{
	struct ptx_kernel *kernel = parser->kernel;
	size_t size = 0, align = 0, elements = 1;
	char *save, *name = NULL;

	for (char *word = strtok_r(text, " \t\n", &save); word; word = strtok_r(NULL, " \t\n", &save)) {
		struct type type;

		if (!strcmp(word, ".align"))
			align = size ? align : strtoul(save, NULL, 10);
		else if (*word == '.' && type_of(word + 1, &type))
			size = type.bits / 8;
		else if (*word != '.' && !isdigit((unsigned char)*word))
			name = word;
	}
	if (!name || !size || kernel->parameters == PTX_PARAMETERS) {
		refuse(parser, "an odd parameter", kernel->name);
		return;
	}
	if (strchr(name, '[')) {
		elements = strtoul(strchr(name, '[') + 1, NULL, 10);
		*strchr(name, '[') = 0;
	}
	align = align ? align : size;
	kernel->parameters_size = (kernel->parameters_size + align - 1) / align * align;
	snprintf(kernel->parameter[kernel->parameters].name, PTX_NAME, "%.511s", name);
	kernel->parameter[kernel->parameters].offset = kernel->parameters_size;
	kernel->parameter[kernel->parameters++].size = size * elements;
	kernel->parameters_size += size * elements;
}

static char *read_kernel(struct parser *parser, char *at)
{
	struct ptx_module *module = parser->module;
	char *open = strchr(at, '('), *close = open ? strchr(open, ')') : NULL, *body = strchr(at, '{'), *end, *save;
	int depth = 0;

	if (!body) {
		refuse(parser, "a kernel without a body", at);
		return at + strlen(at);
	}
	for (end = body; *end && (depth += (*end == '{') - (*end == '}')); end++)
		;
	module->kernels = realloc(module->kernels, (module->kernels_count + 1) * sizeof *module->kernels);
	parser->kernel = &module->kernels[module->kernels_count++];
	memset(parser->kernel, 0, sizeof *parser->kernel);
	parser->labels_count = parser->names_count = 0;
	at += strspn(at, " \t\n");
	snprintf(parser->kernel->name, PTX_NAME, "%.*s", (int)strcspn(at, " \t\n({"), at);
	if (open && close && open < body && close < body) {
		*close = 0;
		for (char *each = strtok_r(open + 1, ",", &save); each; each = strtok_r(NULL, ",", &save))
			if (*trim(each))
				read_parameter(parser, trim(each));
	}
	if (*end)
		*end++ = 0;
	read_body(parser, body + 1);
	parser->kernel->registers = parser->names_count;
	return end;
}

/* ".global .align 4 .u32 name[n]", zero at first */
static char *read_variable(struct parser *parser, char *at)
{
	struct ptx_module *module = parser->module;
	size_t length = strcspn(at, ";"), size = 0, elements = 1;
	char *rest = at + length + (at[length] == ';'), *name = NULL, *save;

	at[length] = 0;
	at[strcspn(at, "=")] = 0;
	for (char *word = strtok_r(at, " \t\n", &save); word; word = strtok_r(NULL, " \t\n", &save)) {
		struct type type;

		if (*word == '.' && type_of(word + 1, &type))
			size = type.bits / 8;
		else if (*word != '.' && !isdigit((unsigned char)*word))
			name = word;
	}
	if (!name || !size)
		return rest;
	if (strchr(name, '[')) {
		elements = strtoul(strchr(name, '[') + 1, NULL, 10);
		*strchr(name, '[') = 0;
	}
	module->variables = realloc(module->variables, (module->variables_count + 1) * sizeof *module->variables);
	snprintf(module->variables[module->variables_count].name, PTX_NAME, "%.511s", name);
	module->variables[module->variables_count].size = size * elements;
	module->variables[module->variables_count++].memory = calloc(elements + 1, size + 8);
	return rest;
}

struct ptx_module *ptx_load(const char *text)
{
	struct ptx_module *module = calloc(1, sizeof *module);
	struct parser *parser = calloc(1, sizeof *parser);
	char *copy = without_comments(text), *at = copy;

	parser->module = module;
	parser->names = calloc(REGISTERS_MAX, sizeof *parser->names);
	if (!strstr(copy, ".version") || !strstr(copy, ".target"))
		refuse(parser, "no PTX", copy);
	while (!module->why[0]) {
		char *entry = strstr(at, ".entry "), *variable = strstr(at, ".global ");

		if (variable && (!entry || variable < entry))
			at = read_variable(parser, variable + strlen(".global "));
		else if (entry)
			at = read_kernel(parser, entry + strlen(".entry "));
		else
			break;
	}
	free(copy);
	free(parser->names);
	free(parser->wanted);
	free(parser);
	return module;
}

void ptx_free(struct ptx_module *module)
{
	for (unsigned i = 0; i < module->kernels_count; i++)
		free(module->kernels[i].steps);
	for (unsigned i = 0; i < module->variables_count; i++)
		free(module->variables[i].memory);
	free(module->kernels);
	free(module->variables);
	free(module);
}

/* Running */

struct thread {
	const struct ptx_kernel *kernel;
	const uint8_t *parameters;
	ptx_may *may;
	unsigned special[12];
	uint64_t registers[REGISTERS_MAX];
};

static uint64_t value_of(const struct thread *thread, const struct operand *operand)
{
	switch (operand->kind) {
	case REGISTER:
		return thread->registers[operand->index];
	case SPECIAL:
		return thread->special[operand->index];
	default:
		return operand->number;
	}
}

static uint64_t cut(uint64_t value, struct type type)
{
	unsigned unused = 64 - type.bits;

	if (type.family == 's')
		return (uint64_t)((int64_t)(value << unused) >> unused);
	return value << unused >> unused;
}

static double as_float(uint64_t value, struct type type)
{
	uint32_t half = (uint32_t)value;
	double wide;
	float narrow;

	if (type.family == 's')
		return (double)(int64_t)cut(value, type);
	if (type.family != 'f')
		return (double)cut(value, type);
	memcpy(&narrow, &half, sizeof narrow);
	memcpy(&wide, &value, sizeof wide);
	return type.bits == 32 ? (double)narrow : wide;
}

static uint64_t from_float(double value, struct type type)
{
	float narrow = (float)value;
	uint64_t bits = 0;

	if (type.family == 's')
		return cut((uint64_t)(int64_t)value, type);
	if (type.family != 'f')
		return cut((uint64_t)value, type);
	if (type.bits == 32)
		memcpy(&bits, &narrow, sizeof narrow);
	else
		memcpy(&bits, &value, sizeof value);
	return bits;
}

static double float_op(enum op op, double a, double b, double c)
{
	switch (op) {
	case ADD:
		return a + b;
	case SUB:
		return a - b;
	case MUL:
		return a * b;
	case MAD:
		return a * b + c;
	case DIV:
		return a / b;
	case NEG:
		return -a;
	case ABS:
		return a < 0 ? -a : a;
	case MIN:
		return a < b ? a : b;
	case MAX:
		return a > b ? a : b;
	default:
		return a;
	}
}

static uint64_t int_op(const struct ptx_step *step, uint64_t a, uint64_t b, uint64_t c)
{
	bool is_signed = step->type.family == 's';
	struct type type = step->type;

	if (step->op == MUL || step->op == MAD) {
		uint64_t product = a * b;

		if (step->high)
			product = type.bits == 64 ? (uint64_t)(((unsigned __int128)a * b) >> 64) : product >> type.bits;
		return product + (step->op == MAD ? c : 0);
	}
	switch (step->op) {
	case ADD:
		return a + b;
	case SUB:
		return a - b;
	case DIV:
		return !b ? ~0ULL : is_signed ? (uint64_t)((int64_t)a / (int64_t)b) : a / b;
	case REM:
		return !b ? a : is_signed ? (uint64_t)((int64_t)a % (int64_t)b) : a % b;
	case NEG:
		return 0 - a;
	case ABS:
		return (int64_t)a < 0 ? 0 - a : a;
	case MIN:
		return (is_signed ? (int64_t)a < (int64_t)b : a < b) ? a : b;
	case MAX:
		return (is_signed ? (int64_t)a > (int64_t)b : a > b) ? a : b;
	case AND:
		return a & b;
	case OR:
		return a | b;
	case XOR:
		return a ^ b;
	case NOT:
		return type.family == 'p' ? !a : ~a;
	case SHL:
		return b >= type.bits ? 0 : a << b;
	case SHR:
		if (b >= type.bits)
			b = type.bits - 1;
		return is_signed ? (uint64_t)((int64_t)a >> b) : a >> b;
	default:
		return a;
	}
}

static bool compare(const struct ptx_step *step, uint64_t a, uint64_t b)
{
	const char *how = step->compare;
	int order;

	if (step->type.family == 'f') {
		double x = as_float(a, step->type), y = as_float(b, step->type);

		order = x < y ? -1 : x > y;
	} else {
		a = cut(a, step->type);
		b = cut(b, step->type);
		order = step->type.family == 's' ? ((int64_t)a > (int64_t)b) - ((int64_t)a < (int64_t)b) : (a > b) - (a < b);
	}
	switch (how[0]) {
	case 'e':
		return order == 0;
	case 'n':
		return order != 0;
	case 'l':
		return how[1] == 't' || how[1] == 'o' ? order < 0 : order <= 0;
	default:
		return how[1] == 't' || how[1] == 'i' ? order > 0 : order >= 0;
	}
}

static bool touch(struct thread *thread, const struct ptx_step *step, bool stores)
{
	const struct operand *where = &step->operands[stores ? 0 : 1];
	size_t size = step->type.bits / 8;
	uint64_t at = where->number, value = 0;

	if (where->kind == PARAMETER) {
		memcpy(&value, thread->parameters + where->number, size);
	} else {
		if (where->kind == MEMORY)
			at += thread->registers[where->index];
		if (!thread->may(at, size))
			return false;
		if (stores) {
			value = value_of(thread, &step->operands[1]);
			memcpy((void *)(uintptr_t)at, &value, size);
			return true;
		}
		memcpy(&value, (void *)(uintptr_t)at, size);
	}
	thread->registers[step->operands[0].index] = cut(value, step->type);
	return true;
}

static uint64_t compute(const struct thread *thread, const struct ptx_step *step)
{
	uint64_t a = value_of(thread, &step->operands[1]), b = step->count > 2 ? value_of(thread, &step->operands[2]) : 0;
	uint64_t c = step->count > 3 ? value_of(thread, &step->operands[3]) : 0;
	struct type type = step->type;

	switch (step->op) {
	case SETP:
		return compare(step, a, b);
	case SELP:
		return c ? a : b;
	case CVT:
		if (step->type.family == 'f' || step->from.family == 'f')
			return from_float(as_float(a, step->from), type);
		return cut(cut(a, step->from), type);
	case MOV:
		return type.bits ? cut(a, type) : a;
	default:
		break;
	}
	if (type.family == 'f')
		return from_float(float_op(step->op, as_float(a, type), as_float(b, type), as_float(c, type)), type);
	if (type.bits && step->op != SHL && step->op != SHR)
		b = cut(b, type);
	a = type.bits ? cut(a, type) : a;
	if (step->wide)
		return int_op(step, a, b, c);
	return cut(int_op(step, a, b, c), type.bits ? type : (struct type){'u', 64});
}

static enum ptx_outcome run_thread(struct thread *thread)
{
	const struct ptx_kernel *kernel = thread->kernel;

	for (unsigned at = 0; at < kernel->count; at++) {
		const struct ptx_step *step = &kernel->steps[at];

		if (step->guard >= 0 && !thread->registers[step->guard] != step->guard_not)
			continue;
		switch (step->op) {
		case RET:
			return PTX_GOOD;
		case TRAP:
			return PTX_TRAP;
		case BRA:
			at = step->operands[0].index - 1;
			break;
		case LD:
		case ST:
			if (!touch(thread, step, step->op == ST))
				return PTX_BAD_ADDRESS;
			break;
		default:
			thread->registers[step->operands[0].index] = compute(thread, step);
		}
	}
	return PTX_GOOD;
}

enum ptx_outcome ptx_run(const struct ptx_kernel *kernel, const uint8_t *parameters, const unsigned *grid,
			 const unsigned *block, ptx_may *may)
{
	static struct thread thread;
	uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2], threads = (uint64_t)block[0] * block[1] * block[2];

	thread.kernel = kernel;
	thread.parameters = parameters;
	thread.may = may;
	for (uint64_t n = 0; n < blocks * threads; n++) {
		uint64_t b = n / threads, t = n % threads;
		enum ptx_outcome outcome;

		memset(thread.registers, 0, kernel->registers * sizeof *thread.registers);
		for (unsigned i = 0; i < 3; i++) {
			thread.special[i] = (unsigned)(t % block[i]);
			thread.special[3 + i] = block[i];
			thread.special[6 + i] = (unsigned)(b % grid[i]);
			thread.special[9 + i] = grid[i];
			t /= block[i];
			b /= grid[i];
		}
		outcome = run_thread(&thread);
		if (outcome != PTX_GOOD)
			return outcome;
	}
	return PTX_GOOD;
}
