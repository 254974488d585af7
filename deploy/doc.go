// Package deploy holds the Dockerfile and the compose file, and tests that run what of them runs without a container engine: the servers
// and Redis with the commands, variables and health checks of compose.yaml, and the Dockerfile's shell steps in a directory of their own.
package deploy
