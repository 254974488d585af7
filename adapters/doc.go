// Package adapters holds everything about LoRA-FA adapters: the shared basis (all lora_A's), the tenants' lora_B's
// with their versions, the registry and its stores, and the pool that keeps B's on the device.
package adapters
