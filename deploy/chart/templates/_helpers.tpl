{{- define "hybridnic.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 49 characters, so that with any ending it is still a label's value. A release that is named as the chart is not named twice. */}}
{{- define "hybridnic.fullname" -}}
{{- $name := include "hybridnic.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 49 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of the pods of a part, which never change. Call with (list . "operator"). */}}
{{- define "hybridnic.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "hybridnic.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object that belongs to no one part. */}}
{{- define "hybridnic.labels" -}}
app.kubernetes.io/name: {{ include "hybridnic.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of an object of a part. Call with (list . "operator"). */}}
{{- define "hybridnic.partLabels" -}}
{{ include "hybridnic.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The image of a part, of its values: by its digest, if that is given. */}}
{{- define "hybridnic.image" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $tagged := printf ":%s" (default $root.Chart.AppVersion $root.Values.image.tag) -}}
{{- printf "%s/%s%s" $root.Values.image.registry $part.image (ternary (printf "@%s" $part.digest) $tagged (not (empty $part.digest))) -}}
{{- end -}}

{{/* By what the operator finds the agents' pods. */}}
{{- define "hybridnic.agents" -}}
app.kubernetes.io/instance={{ .Release.Name }},app.kubernetes.io/component=agent
{{- end -}}

{{/* The operator's lease. Its name is the same in every release: a second one is refused anyway. */}}
{{- define "hybridnic.lease" -}}hybridnic-operator{{- end -}}

{{/* The admission policy. One name for every release: by it a second release finds the first. */}}
{{- define "hybridnic.policy" -}}agents.hybridnic.io{{- end -}}
