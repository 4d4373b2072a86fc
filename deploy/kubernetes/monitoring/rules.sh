#!/bin/sh
# Writes prometheusrule.yaml: the rules of deploy/prometheus as the operator wants them. A test says when
# that has to be done again.
set -eu
cd "$(dirname "$0")"
{
  cat <<'HEAD'
# Made by rules.sh from deploy/prometheus/holdfast.rules.yaml: change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: holdfast
spec:
HEAD
  sed -e '/^#/d' -e '/./s/^/  /' ../../prometheus/holdfast.rules.yaml
} >prometheusrule.yaml
