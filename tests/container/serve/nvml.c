/* A driver's libnvidia-ml.so.1 that pretends: two GPUs, of which FAKE_NVML=split splits the second into two instances
   (MIG), in places 0 and 2; FAKE_NVML=lost has the second fall off the bus, FAKE_NVML=broken fails altogether.
   Names and numbers are those of nvml.h. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

struct device { const char *uuid; unsigned busy; unsigned long long used, total; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };

static struct device gpus[] = {{"GPU-aaaa-1", 37, 10000000000ull, 80000000000ull}, {"GPU-abbb-2", 100, 1, 4}};
static struct device instances[] = {{"MIG-cccc-1", 0, 5, 20}, {0}, {"MIG-dddd-2", 0, 7, 20}};

static int is(const char *what) { const char *set = getenv("FAKE_NVML"); return set && !strcmp(set, what); }
static int is_instance(struct device *device) { return device >= instances && device < instances + 3; }
static int is_lost(struct device *device) { return is("lost") && device == &gpus[1]; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; return is("broken") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) { *device = &gpus[index]; return SUCCESS; }

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length)
{
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending)
{
    if (device == &gpus[0])
        return NOT_SUPPORTED;
    *current = *pending = is("split");
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) { (void)device; *count = 3; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **instance)
{
    (void)device;
    *instance = &instances[index];
    return instances[index].uuid ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory)
{
    memory->total = device->total, memory->used = device->used, memory->free = device->total - device->used;
    return is_lost(device) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *rates)
{
    rates->gpu = device->busy;
    return is_lost(device) ? GPU_IS_LOST : is_instance(device) ? NOT_SUPPORTED : SUCCESS;
}
