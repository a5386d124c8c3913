/*
 * Who waits for a reply that comes later. A ticket names a stream by its place in a table and the place's generation, so
 * one whose stream is gone finds nothing: no layer keeps a pointer to a connection.
 */
#ifndef PH_TICKET_H
#define PH_TICKET_H

#include <stdint.h>

struct ph_ticket {
    uint32_t slot;
    uint32_t generation;
    uint32_t message_id;
    uint32_t why; /* enum ph_deferral: which of the stream's counts it is in */
};

#endif
