/* Breadth-first search of a random graph of 1 GiB, for the sample bfs.nwt.
 *
 * 4 Mi vertices with 60 neighbours each, as one array: 960 MiB, plus 16 MiB of levels and 32 MiB of
 * queue. The graph is made first; recording begins at one marker and ends at another, both in the
 * middle of the search, where most vertices that are looked at lie anywhere in memory.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define VERTICES (1u << 22)
#define DEGREE 60u
#define BEFORE 20000u /* vertices searched before the first marker */
#define AFTER 6000u   /* and up to the second */

static uint64_t state = 1;

static uint32_t draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % VERTICES;
}

int main(void) {
    uint32_t *edges = malloc((size_t)VERTICES * DEGREE * sizeof *edges);
    int32_t *level = malloc((size_t)VERTICES * sizeof *level);
    uint32_t *queue = malloc((size_t)VERTICES * 2 * sizeof *queue);
    if (!edges || !level || !queue)
        return 1;
    for (size_t i = 0; i < (size_t)VERTICES * DEGREE; i++)
        edges[i] = draw();
    for (size_t i = 0; i < VERTICES; i++)
        level[i] = -1;
    for (size_t i = 0; i < (size_t)VERTICES * 2; i += 1024)
        queue[i] = 0;
    size_t head = 0, tail = 0;
    queue[tail++] = 0;
    level[0] = 0;
    while (head < tail && head < BEFORE + AFTER) {
        if (head == BEFORE)
            /* nopl 0xf5a00003(%rax): the region of interest begins */
            __asm__ volatile(".byte 0x0f, 0x1f, 0x80, 3, 0, 0xa0, 0xf5");
        uint32_t v = queue[head++];
        for (uint32_t i = 0; i < DEGREE; i++) {
            uint32_t w = edges[(size_t)v * DEGREE + i];
            if (level[w] < 0) {
                level[w] = level[v] + 1;
                queue[tail++] = w;
            }
        }
    }
    /* nopl 0xf5a00004(%rax): it ends */
    __asm__ volatile(".byte 0x0f, 0x1f, 0x80, 4, 0, 0xa0, 0xf5");
    printf("%zu vertices reached, the last on level %d\n", tail, level[queue[tail - 1]]);
    return 0;
}
