#include "errors.h"

const struct cuda_error *cuda_error_of(int code)
{
	for (size_t i = 0; i < cuda_errors_count; i++)
		if (cuda_errors[i].code == code)
			return &cuda_errors[i];
	return NULL;
}
