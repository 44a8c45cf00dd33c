/* The borrower's end: carries bytes between the lender and the host side of the guest's port, counted but not changed. */
#pragma once

#include "tls.h"

struct pump {
	const char *address, *port; /* of the lender */
	const char *socket;	    /* Unix socket of the port's host side, or NULL: only try the lender's key */
	const char *meter;	    /* file of counters, or NULL */
	int silence;		    /* seconds after which a lender that does not answer is lost */
};

/* Carry bytes until one side ends. Returns 0 if that was the port's, else 1, and has said why on stderr. */
int pump_run(const struct pump *pump, const struct key *key);
