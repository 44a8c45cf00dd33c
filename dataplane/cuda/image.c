#include "image.h"

#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { FATBIN_MAGIC = (int)0xba55ed50, WRAPPER_MAGIC = 0x466243b1, FATBIN_HEADER = 16 };

struct wrapper {
	uint32_t magic, version;
	const void *image;
	void *unused;
};

static bool starts_with(const void *image, uint32_t magic)
{
	uint32_t first;

	memcpy(&first, image, sizeof first);
	return first == magic;
}

const void *image_unwrap(const void *image)
{
	struct wrapper wrapper;

	if (!starts_with(image, WRAPPER_MAGIC))
		return image;
	memcpy(&wrapper, image, sizeof wrapper);
	return wrapper.image;
}

static size_t larger(size_t one, size_t other)
{
	return one > other ? one : other;
}

/* `limit` and what is added to it stay far below what a size_t holds. */
static size_t end_of(uint64_t offset, uint64_t size, size_t limit)
{
	return offset > limit || size > limit - offset ? SIZE_MAX : (size_t)(offset + size);
}

static size_t elf_size(const uint8_t *image, size_t limit)
{
	Elf64_Ehdr head;
	size_t size = sizeof head;

	if (limit < sizeof head)
		return 0;
	memcpy(&head, image, sizeof head);
	if (head.e_ident[EI_CLASS] != ELFCLASS64 || (head.e_shnum && head.e_shentsize != sizeof(Elf64_Shdr)) ||
	    (head.e_phnum && head.e_phentsize != sizeof(Elf64_Phdr)))
		return 0;
	size = larger(size, end_of(head.e_shoff, (uint64_t)head.e_shnum * head.e_shentsize, limit));
	size = larger(size, end_of(head.e_phoff, (uint64_t)head.e_phnum * head.e_phentsize, limit));
	if (size > limit)
		return 0;
	for (unsigned i = 0; i < head.e_shnum; i++) {
		Elf64_Shdr section;

		memcpy(&section, image + head.e_shoff + i * sizeof section, sizeof section);
		if (section.sh_type != SHT_NOBITS)
			size = larger(size, end_of(section.sh_offset, section.sh_size, limit));
	}
	for (unsigned i = 0; i < head.e_phnum; i++) {
		Elf64_Phdr segment;

		memcpy(&segment, image + head.e_phoff + i * sizeof segment, sizeof segment);
		size = larger(size, end_of(segment.p_offset, segment.p_filesz, limit));
	}
	return size > limit ? 0 : size;
}

static size_t fatbin_size(const uint8_t *image, size_t limit)
{
	uint16_t header;
	uint64_t files;
	size_t size;

	if (limit < FATBIN_HEADER)
		return 0;
	memcpy(&header, image + 6, sizeof header);
	memcpy(&files, image + 8, sizeof files);
	size = end_of(header, files, limit);
	return header < FATBIN_HEADER || size > limit ? 0 : size;
}

size_t image_size(const void *image, size_t limit)
{
	size_t length;

	if (limit < sizeof(uint32_t))
		return 0;
	if (!memcmp(image, ELFMAG, SELFMAG))
		return elf_size(image, limit);
	if (starts_with(image, (uint32_t)FATBIN_MAGIC))
		return fatbin_size(image, limit);
	length = strnlen(image, limit);
	/* PTX begins with a directive or a comment. */
	return length == limit || !length || (uint8_t)*(const char *)image >= 0x80 ? 0 : length + 1;
}
